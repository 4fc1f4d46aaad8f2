"""What the methods of a recipe gain one by one, what their product would be, and what they gain together.

Methods that speed up the same seconds do not multiply, and some only pay in company; a combined row says which it was. Every part is timed
alone on the stock pipeline or network, interleaved with it and with the whole recipe, under the same batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TypeVar

from vis_accel.errors import VisAccelError
from vis_accel.eval.interval import Interval
from vis_accel.eval.speed import Timings
from vis_accel.recipe import Recipe

__all__ = ["break_even", "parts_of", "product", "standing_in"]


class Participant(Protocol):
    """A row to be: of a pipeline or of a classifier."""

    @property
    def label(self) -> str:
        """What the row is called."""

    @property
    def recipe(self) -> Recipe:
        """The empty one for a stock row."""


Someone = TypeVar("Someone", bound=Participant)


def parts_of(recipe: Recipe) -> tuple[Recipe, ...]:
    """Each method of a combination alone; nothing, where there is no combination or its speed means nothing."""
    return () if len(recipe.methods) < 2 or recipe.simulated else tuple(Recipe((method,)) for method in recipe.methods)


@contextmanager
def standing_in(
    recipe: Recipe, there: Sequence[Someone], make: Callable[[Recipe], Someone], drop: Callable[[Someone], None]
) -> Iterator[tuple[list[Someone], dict[str, str]]]:
    """While open, somebody for each part of a recipe: from those who are `there`, else made and dropped again.

    Yields:
        who there is, and why there is nobody for the others, by their text.
    """
    known = {one.recipe: one for one in there}
    made, missing = dict[Recipe, Someone](), dict[str, str]()
    try:
        for part in parts_of(recipe):
            if part not in known:
                try:
                    made[part] = make(part)
                except VisAccelError as error:  # a part that cannot stand alone is a fact of the row
                    missing[str(part)] = str(error).splitlines()[0]
        yield [known.get(part) or made[part] for part in parts_of(recipe) if part in known or part in made], missing
    finally:
        for one in reversed(list(made.values())):
            drop(one)


def product(timings: Timings, baseline: str, parts: Sequence[str], whole: str, missing: dict[str, str]) -> str:
    """The line of a combined row: ratios to `baseline`, all from one interleaved timing."""
    gains = {part: timings.ratio(part, baseline) for part in parts}
    alone = ", ".join(f"{part} {gain.value:.2f}x" for part, gain in gains.items())
    together = timings.ratio(whole, baseline)
    if missing:
        cannot = "; ".join(f"{part} cannot run alone: {why}" for part, why in missing.items())
        return f"alone: {alone or 'none'}; together {_spread(together)}; no product, since {cannot}"
    predicted = 1.0
    for gain in gains.values():
        predicted *= gain.value
    share = together.value / predicted
    return f"alone: {alone}; product {predicted:.2f}x, together {_spread(together)}: {100 * share:.0f}% of it"


def break_even(timings: Timings, baseline: str, label: str, batch: int) -> str | None:
    """After how many calls a long first one has been won back, in words; None where the first call is like the others."""
    extra = timings.first_call[label] - timings.median(label)
    if extra < max(1.0, timings.median(label)):
        return None
    calls = timings.break_even(label, baseline)
    if calls is None:
        return f"first call {timings.first_call[label]:.1f} s, never won back: it is slower than {baseline}"
    return f"first call {timings.first_call[label]:.1f} s, won back after {calls} calls of {batch} against {baseline}"


def _spread(ratio: Interval) -> str:
    return f"{ratio.value:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}]"
