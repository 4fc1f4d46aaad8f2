"""What a combination is made of: every part alone, their product, and when a first call has been won back."""

from __future__ import annotations

from dataclasses import dataclass

from vis_accel import UsageError
from vis_accel.eval.speed import Timings
from vis_accel.parts import break_even, parts_of, product, standing_in
from vis_accel.recipe import Recipe


@dataclass(frozen=True)
class Row:
    recipe: Recipe

    @property
    def label(self) -> str:
        return str(self.recipe)


def timings(**seconds: float) -> Timings:
    """Six equal rounds of each; the first call of "late" takes ten seconds more."""
    first = {label: value + 10 * (label == "late") for label, value in seconds.items()}
    return Timings({k: (v,) * 6 for k, v in seconds.items()}, {k: (v,) * 12 for k, v in seconds.items()}, first)


def test_parts_are_the_methods_of_a_combination() -> None:
    assert parts_of(Recipe.parse("dpm(steps=4)")) == ()
    assert parts_of(Recipe.parse("dpm(steps=4) + q-diffusion(weights=4)")) == ()  # simulated: its speed means nothing
    assert parts_of(Recipe.parse("int8 + dpm(steps=4)")) == (Recipe.parse("dpm(steps=4)"), Recipe.parse("int8"))


def test_who_is_there_is_asked_and_who_is_made_is_dropped() -> None:
    there, made, dropped = Row(Recipe.parse("int8")), list[Row](), list[Row]()

    def make(recipe: Recipe) -> Row:
        if recipe == Recipe.parse("compile"):
            raise UsageError("No compiler.\nmore")
        made.append(Row(recipe))
        return made[-1]

    with standing_in(Recipe.parse("dpm(steps=4) + int8 + compile"), [there], make, dropped.append) as found:
        assert found == ([*made, there], {"compile": "No compiler."})
        assert not dropped
    assert dropped == made
    assert [row.label for row in made] == ["dpm(steps=4)"]


def test_the_product_of_the_parts_beside_what_they_gain_together() -> None:
    line = product(timings(stock=12, a=6, b=4, ab=2.5), "stock", ["a", "b"], "ab", {})
    assert line == "alone: a 2.00x, b 3.00x; product 6.00x, together 4.80x [4.80, 4.80]: 80% of it"
    short = product(timings(stock=12, a=6, ab=2.5), "stock", ["a"], "ab", {"b": "No compiler."})
    assert "product" not in short.replace("no product", "")
    assert short.endswith("no product, since b cannot run alone: No compiler.")


def test_a_long_first_call_is_won_back_or_never() -> None:
    found = timings(stock=3, late=1, early=1)
    assert break_even(found, "stock", "late", 16) == "first call 11.0 s, won back after 5 calls of 16 against stock"
    assert break_even(found, "stock", "early", 16) is None
    assert "never won back" in str(break_even(timings(stock=1, late=2), "stock", "late", 16))
