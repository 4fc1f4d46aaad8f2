"""Cards as points: those that ship, those of strangers, and the drawing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

from vis_accel.app.frontier import CARDS, Frontier, read_card, shipped_cards
from vis_accel.app.plot import plot, table
from vis_accel.app.settings import Settings
from vis_accel.errors import DataError
from vis_accel.record import Card

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {"cifar10-dit.json": "eval/results/default", "cifar10-vit.json": "token_pruning/results/cifar10-vit"}


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_cards_that_ship_are_the_measured_ones(name: str) -> None:
    assert (CARDS / name).read_bytes() == (ROOT / SOURCES[name] / "card.json").read_bytes(), f"copy {SOURCES[name]}/card.json again"
    assert sorted(path.name for path in CARDS.glob("*.json")) == sorted(SOURCES)


def test_points_are_the_rows() -> None:
    card = Card.load(CARDS / "cifar10-dit.json")
    found = Frontier.of(card)
    assert (found.model, found.axis, found.lower_is_better) == ("cifar10-dit", "FID[cifar10-features]", True)
    assert [point.label for point in found.points] == [row.recipe for row in card.rows]
    assert [point.recipe for point in found.points] == [None, None, "dpm(steps=10)"]
    assert found.points[0].ratio == 1
    assert found.points[2].calls == 10


def test_the_operators_card_comes_first(tmp_path: Path) -> None:
    card = Card.load(CARDS / "cifar10-dit.json")
    rows = tuple(replace(row, model="mine") for row in card.rows)
    Card(title="mine", baseline=rows[0], records=rows[1:]).save(tmp_path)
    assert next(iter(shipped_cards(Settings(card=tmp_path)))).startswith("mine")
    with pytest.raises(DataError, match="Cannot read"):
        shipped_cards(Settings(card=tmp_path / "absent.json"))


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b"{" * 100_000, b"null", b'{"title": 1}', bytes(1_000_001), b'{"schema": 99}'],
    ids=["empty", "object", "list", "bytes", "deep", "null", "wrong", "huge", "schema"],
)  # fmt: skip
def test_what_is_no_card_is_refused(data: bytes) -> None:
    with pytest.raises(DataError):
        read_card(data)


def test_a_card_with_nothing_to_plot_is_refused() -> None:
    form = json.loads((CARDS / "cifar10-dit.json").read_text())
    form["records"] = []
    with pytest.raises(DataError, match="nothing to plot"):
        read_card(json.dumps(form).encode())


class Tags(HTMLParser):
    """All tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.attributes |= {name for name, _ in attrs}


HOSTILE = '"><script>alert(1)</script><img src=x onerror=alert(2)>'


def test_names_in_a_card_stay_text() -> None:
    form = json.loads((CARDS / "cifar10-dit.json").read_text())
    form["title"] = HOSTILE
    for row in [form["baseline"], *form["records"]]:
        row["recipe"], row["data"], row["machine"]["processor"] = HOSTILE + row["recipe"], HOSTILE, HOSTILE
        row["quality"] = {f"FID{HOSTILE}": row["quality"]["FID[cifar10-features]"]}
    found = read_card(json.dumps(form).encode())
    tags = Tags()
    tags.feed(plot(found) + table(found))
    assert not tags.seen & {"script", "img"}
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert [point.recipe for point in found.points] == [None, None, None]


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_the_plot_has_a_point_a_row_inside_its_frame(name: str) -> None:
    found = read_card((CARDS / name).read_bytes())
    drawing = plot(found)
    circles = re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)" r="6"', drawing)
    assert len(circles) == len(found.points)
    assert all(60 <= float(x) <= 700 and 10 <= float(y) <= 370 for x, y in circles)
    reachable = re.findall(r'role="button" tabindex="0" data-index="(\d+)"', drawing)
    assert [int(index) for index in reachable] == [index for index, point in enumerate(found.points) if point.recipe is not None]
    ordered = sorted(zip(circles, found.points, strict=True), key=lambda pair: pair[1].speed)
    assert [float(x) for (x, _), _ in ordered] == sorted(float(x) for x, _ in circles)
    assert table(found).count("<tr") == len(found.points) + 1
