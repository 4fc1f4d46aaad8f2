"""A card as points: quality against speed. Cards come from strangers: read strictly, bounded, and every name escaped where it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vis_accel.app import recipes
from vis_accel.app.settings import Settings
from vis_accel.errors import DataError, VisAccelError
from vis_accel.record import Card, Record, pace, quality_axis, undominated

__all__ = ["CARDS", "Frontier", "Point", "read_card", "shipped_cards"]

CARDS = Path(__file__).parent / "cards"
MOST_BYTES, MOST_ROWS = 1_000_000, 200


@dataclass(frozen=True)
class Point:
    """One row of a card.

    Attributes:
        label: what the row is called.
        recipe: its recipe, as text that is readable here; None for stock rows and methods that are not installed.
        speed: images per second, comparable between the rows.
        quality, low, high: on the card's axis, with its interval.
        ratio: speed over the baseline's.
        calls: of the network an image; None where nothing is called more than once.
        best: whether no other row beats it.
    """

    label: str
    recipe: str | None
    speed: float
    quality: float
    low: float | None
    high: float | None
    ratio: float | None
    calls: float | None
    best: bool


@dataclass(frozen=True)
class Frontier:
    """The points of a card.

    Attributes:
        title, model: of the card.
        axis: the name of the quality; lower_is_better: FID.
        points: the baseline first.
        note: n, data and machine, in a line.
    """

    title: str
    model: str
    axis: str
    lower_is_better: bool
    points: tuple[Point, ...]
    note: str

    @classmethod
    def of(cls, card: Card) -> Frontier:
        """The points of those rows that have a speed and the quality all are compared by.

        Raises:
            DataError: fewer than two rows have both.
        """
        axis = quality_axis(card.rows)
        found = [] if axis is None else [(row, pace(row, axis, card.baseline)) for row in card.rows if axis in row.quality]
        rows = [(row, speed) for row, speed in found if speed and math.isfinite(speed) and row.quality[axis or ""].value is not None]
        if axis is None or len(rows) < 2:
            raise DataError("This card has fewer than two rows with both a speed and a quality: there is nothing to plot.")
        best = {id(row) for row in undominated(card.rows)}
        base = next((speed for row, speed in rows if row is card.baseline), None)
        points = tuple(_point(row, speed, axis, base, id(row) in best) for row, speed in rows[:MOST_ROWS])
        machine = str(card.baseline.machine.get("processor") or "an unknown machine")
        note = f"n = {card.baseline.n:,}, {card.baseline.data}; timed on {machine}"
        return cls(card.title, card.baseline.model, axis, axis.startswith("FID"), points, note)


def _point(row: Record, speed: float, axis: str, base: float | None, best: bool) -> Point:
    quality = row.quality[axis]
    calls = row.counters.get("calls")
    try:
        recipe: str | None = str(recipes.read(row.recipe))
    except VisAccelError:
        recipe = None
    return Point(
        label=row.recipe,
        recipe=recipe if recipe != "none" else None,
        speed=speed,
        quality=quality.value or 0.0,
        low=quality.low,
        high=quality.high,
        ratio=speed / base if base else None,
        calls=None if calls is None else float(calls),
        best=best,
    )


def read_card(data: bytes) -> Frontier:
    """The frontier of a card.json's bytes.

    Raises:
        DataError: too large, no card, or nothing to plot in it.
    """
    if len(data) > MOST_BYTES:
        raise DataError(f"A card may have at most {MOST_BYTES:,} bytes here; got {len(data):,}.")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise DataError("The card is not UTF-8 text.") from None
    return Frontier.of(Card.from_json(text))


def shipped_cards(settings: Settings) -> dict[str, Frontier]:
    """Cards to begin with, by name: the operator's first, then those that come with the package."""
    found: dict[str, Frontier] = {}
    paths = [] if settings.card is None else [settings.card / "card.json" if settings.card.is_dir() else settings.card]
    for path in [*paths, *sorted(CARDS.glob("*.json"))]:
        try:
            frontier = read_card(path.read_bytes())
        except OSError as error:
            raise DataError(f"Cannot read {path}: {error.strerror or error}.") from error
        found[f"{frontier.model}: {len(frontier.points)} rows, {frontier.axis}"[:80]] = frontier
    return found
