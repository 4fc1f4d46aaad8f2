"""Records and cards: exact JSON, strict reading, comparable rows, escaped Markdown."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from vis_accel.card_markdown import MARK, escape
from vis_accel.errors import DataError, OutputError, UsageError, VisAccelError
from vis_accel.record import Card, Quantity, Record, Speed, quality_axis, undominated


def record(recipe: str = "dpm(steps=12)", *, speed: float | None = None, ratio: float = 2.0, **more: Any) -> Record:
    given: dict[str, Any] = {
        "recipe_form": {"methods": [{"name": "dpm", "options": {"steps": 12, "schedule": (3.0, 1.0)}}]},
        "exactness": "approximate",
        "model": "cifar10-dit",
        "model_hash": "0123456789abcdef",
        "data": "cifar10",
        "seeds": "0..4999",
        "n": 5000,
    }
    if speed is not None:
        pace = Quantity(value=speed, low=speed * 0.9, high=speed * 1.1)
        given["speed"] = Speed(images_per_second=pace, spread=0.01, repeats=20, batch=8, ratios={"stock": Quantity(value=ratio)})
    return Record(recipe=recipe, **{**given, **more})


def fid(value: float | None) -> dict[str, Quantity]:
    return {"FID[cifar10-features]": Quantity(value=value, higher_is_better=False)}


def full() -> Record:
    return record(
        speed=100.0,
        quality=fid(12.5),
        settings={"guidance": 1.5, "size": 32, "dtype": "float32", "compiled": False, "none": None},
        counters={"calls": 12, "nfe": 24, "macs": 1.5e9, "unknown": None},
        peak_memory_bytes=123_000_000,
        first_call_seconds=2,
        verdict="same: within the margin",
        unstable=["shared machine"],
        machine={"cores": 2, "isa": "AVX512"},
        versions={"torch": "2.15.0"},
        commit="abc",
        started="2026-11-22T21:00:00Z",
        finished="2026-11-22T21:05:00Z",
    )


def card() -> Card:
    return Card(title="DiT", baseline=record("none", speed=50.0, quality=fid(12.0)), records=(full(),), reference={"name": "cifar10-train"})


def paths(form: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [at]
    for key, value in form.items() if isinstance(form, dict) else enumerate(form) if isinstance(form, list) else ():
        found += paths(value, (*at, key))
    return found


def test_json_gives_back_the_same_card() -> None:
    assert Record.from_dict(full().to_dict()) == full()
    text = card().to_json()
    assert Card.from_json(text) == card()
    assert Card.from_json(text).to_json() == text
    assert json.loads(text)["schema"] == 1


def test_a_record_is_what_its_copy_from_the_disk_is() -> None:
    assert full().unstable == ("shared machine",)
    assert full().recipe_form["methods"][0]["options"]["schedule"] == [3.0, 1.0]
    assert type(full().first_call_seconds) is float


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": {"PSNR": Quantity(value=float("nan"))}}, "the record.quality.PSNR.value is nan; a value that is not there is None"),
        ({"counters": {"macs": float("inf")}}, "the record.counters.macs is inf"),
        ({"n": "5000"}, "the record.n must be an integer; got '5000'"),
        ({"n": True}, "the record.n must be an integer; got True"),
        ({"n": -1}, "must be >= 0"),
        ({"exactness": "exact"}, "the record.exactness must be 'equivalent' or 'approximate'; got 'exact'"),
        ({"settings": {"size": (32, 32)}}, "the record.settings.size must be a text, an integer, a number, true or false or null"),
        ({"commit": Path("x")}, "which JSON has no form for"),
        ({"counters": {3: 3}}, "keys are texts"),
        ({"versions": 3}, "the record.versions must be an object"),
    ],
)
def test_a_record_refuses_what_it_could_not_write(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        record(**options)
    assert message in caught.value.message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("extra",), 1, "the card has an unknown field 'extra'"),
        (("records", 0, "recipes"), 1, "the card.records[0] has an unknown field 'recipes'"),
        (("records", 0, "speed", "images_per_second", "value"), "fast", "images_per_second.value must be a number or null; got 'fast'"),
        (("records", 0, "versions", "torch"), None, "the card.records[0].versions.torch must be a text; got None"),
        (("records",), {}, "the card.records must be"),
        (("baseline",), [], "the card.baseline must be an object"),
        (("schema",), 2, "has schema 2; this version reads schema 1"),
        (("schema",), "1", "the card.schema must be an integer"),
        (("records", 0, "n"), 4, "Rows of different n cannot be compared"),
        (("records", 0, "n"), -4, "must be >= 0"),
    ],
)
def test_reading_is_strict(path: tuple[Any, ...], value: Any, message: str) -> None:
    form = card().to_dict()
    place = form
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(DataError) as caught:
        Card.from_dict(form)
    assert message in caught.value.message


@pytest.mark.parametrize("name", ["title", "baseline"])
def test_a_missing_field_is_named(name: str) -> None:
    form = card().to_dict()
    del form[name]
    with pytest.raises(DataError, match=f"the card lacks the field {name}"):
        Card.from_dict(form)


NO_CARDS = ["", "[" * 100_000, "{" * 9, '{"a":' * 60 + "1" + "}" * 60, "NaN", "1e999", "9" * 9999, '"\\ud800"', "null"]


@pytest.mark.parametrize("text", NO_CARDS)
def test_what_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(DataError):
        Card.from_json(text)


def test_a_mutated_card_reads_or_is_refused() -> None:
    draw = random.Random(0)
    odd: list[Any] = [None, True, -1, 2**80, 0.5, "", "<script>", "\x1b[31m", [], {}, [[]], {"": 0}]
    read = 0
    for _ in range(2_000):
        form = json.loads(card().to_json())
        path = draw.choice(paths(form)[1:])
        place = form
        for key in path[:-1]:
            place = place[key]
        if draw.random() < 0.3:
            del place[path[-1]]
        else:
            place[path[-1]] = draw.choice(odd)
        try:
            page = Card.from_dict(form).to_markdown()
        except VisAccelError:
            continue
        read += 1
        assert "<script" not in page
        assert "\x1b" not in page
    assert 50 < read < 1_900


def test_rows_that_cannot_be_compared_are_refused() -> None:
    for different in ({"n": 4}, {"seeds": "1..5000"}, {"data": "imagenet"}):
        with pytest.raises(UsageError, match="cannot be compared"):
            Card(title="t", baseline=record(quality=fid(1.0)), records=(record(quality=fid(2.0), **different),))
    Card(title="t", baseline=record(quality=fid(1.0)), records=(record(speed=2.0, n=8),))  # no quality, nothing to compare
    with pytest.raises(UsageError, match="A card holds records"):
        Card(title="t", baseline=record(), records=(1,))  # type: ignore[arg-type]


def test_saving_and_loading(tmp_path: Path) -> None:
    path = card().save(tmp_path / "new")
    assert path == tmp_path / "new" / "card.json"
    assert Card.load(path) == Card.load(path.parent) == card()
    assert path.with_suffix(".md").read_text(encoding="utf-8") == card().to_markdown()
    with pytest.raises(OutputError):
        card().save(path)
    with pytest.raises(DataError, match="nowhere"):
        Card.load(tmp_path / "nowhere")
    path.write_bytes(b"\xff")
    with pytest.raises(DataError, match="not UTF-8"):
        Card.load(path)


def test_undominated_by_fid() -> None:
    slow, fast, worse = (
        record("a", speed=1.0, quality=fid(1.0)),
        record("b", speed=3.0, quality=fid(2.0)),
        record("c", speed=2.0, quality=fid(3.0)),
    )
    twin, unmeasured = record("d", speed=3.0, quality=fid(2.0)), record("e", quality=fid(0.1))
    rows = [slow, fast, worse, twin, unmeasured, record("f", speed=9.0, quality=fid(None))]
    assert undominated(rows) == [slow, fast, twin]
    assert undominated([record("a", speed=3.0, quality=fid(1.0)), slow]) == [record("a", speed=3.0, quality=fid(1.0))]
    assert undominated([]) == []


def test_undominated_by_paired_psnr_where_there_is_no_fid() -> None:
    points = (("a", 1.0, 40.0), ("b", 2.0, 30.0), ("c", 1.5, 20.0))
    rows = [record(name, speed=speed, quality={"PSNR": Quantity(value=db)}) for name, speed, db in points]
    assert quality_axis(rows) == "PSNR"
    assert undominated(rows) == rows[:2]


def test_markdown_has_one_table_with_the_undominated_marked() -> None:
    page = card().to_markdown()
    table = [line for line in page.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1
    assert "| recipe | kind | " in table[0]
    assert "FID\\[cifar10-features\\]" in table[0]
    assert table[2].startswith(f"| {MARK} none (baseline)")
    assert table[3].startswith(f"| {MARK} dpm(steps=12)")
    assert "100 \\[90, 110\\]" in table[3]
    assert "- dpm(steps=12): shared machine" in page
    assert "n 5000; seeds 0..4999" in page
    assert "| same: within the margin |" in table[3]


def test_a_card_without_quality_or_speed_still_prints() -> None:
    page = Card(title="t", baseline=record("none")).to_markdown()
    assert "| none (baseline) | approximate |" in page
    assert MARK not in page


def test_names_are_escaped() -> None:
    evil = "<script>alert(1)</script>|`x`\x1b[31m\n# h\u202e![](https://e.vil)"
    text = escape(evil)
    assert not any(mark in text for mark in "<>\x1b\n\u202e")
    assert "https://" not in text
    row = record(evil, quality={evil: Quantity(value=1.0)}, model=evil, unstable=[evil], settings={evil: evil})
    page = Card(title=evil, baseline=row).to_markdown()
    assert "<script" not in page
    assert "\x1b" not in page
    assert len([line for line in page.splitlines() if line.startswith("#")]) == 1
    assert len([line for line in page.splitlines() if line.startswith("|")]) == 3
