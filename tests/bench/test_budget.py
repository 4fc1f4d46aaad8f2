"""How many images a budget allows, and what is said when it does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vis_accel.budget import Cost, choose_n, parse_duration, spoken
from vis_accel.errors import UsageError

PLAIN = {"calls": [10], "most": 5000, "smallest": 1280, "few": 64, "fixed": 40.0, "samples": None, "budget": None, "left": 280.0}


def test_cost_is_the_line_through_two_runs() -> None:
    cost = Cost.fit((5, 0.016), (50, 0.106))
    assert cost.call == pytest.approx(0.002)
    assert cost.once == pytest.approx(0.006)
    assert cost.image(10) == pytest.approx(0.026)


def test_n_is_as_large_as_is_useful_then_as_the_budget_allows_then_small() -> None:
    def n(each: float) -> int:
        return choose_n(cost=Cost(each / 10, 0.0), **PLAIN)[0]  # type: ignore[arg-type]

    assert n(0.02) == 5000
    assert n(0.06) == 4000
    assert n(0.15) == 1600
    assert n(0.3) == 64  # 800 images would carry no FID


def test_what_was_asked_for_is_done_or_refused_with_what_would_fit() -> None:
    cost = Cost(0.01, 0.0)
    assert choose_n(cost=cost, **{**PLAIN, "samples": 2000})[0] == 2000  # type: ignore[arg-type]
    with pytest.raises(UsageError) as refused:
        choose_n(cost=cost, **{**PLAIN, "samples": 100_000})  # type: ignore[arg-type]
    assert "--samples 35600" in str(refused.value.hint)


@given(st.floats(0.5, 1e6))
def test_a_spoken_time_reads_back_as_at_least_as_long(seconds: float) -> None:
    assert parse_duration(spoken(seconds)) >= seconds * 0.99


@pytest.mark.parametrize("text", ["", "0", "-3m", "5 minutes", "1e9999", "h", "inf", "nan"])
def test_other_texts_are_no_budget(text: str) -> None:
    with pytest.raises(UsageError, match="90s, 5m or 2h"):
        parse_duration(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("5m", 300), ("1.5h", 5400), ("300", 300)])
def test_budgets(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds
