"""The only rule that says "same": all its ends."""

from __future__ import annotations

import pytest

from vis_accel.errors import UsageError
from vis_accel.eval.interval import Interval
from vis_accel.eval.noninferiority import same_quality


def difference(low: float, high: float, n: int = 5000) -> Interval:
    return Interval((low + high) / 2, low, high, n)


@pytest.mark.parametrize(
    ("low", "high", "outcome"),
    [
        (-0.29, 0.29, "same"),
        (-0.30, 0.30, "same"),  # on the edge: bound = 0.03 * (12 - 2)
        (-0.31, 0.10, "undecided"),
        (-0.10, 0.31, "undecided"),
        (0.20, 0.40, "undecided"),
        (0.31, 0.60, "different (worse)"),
        (-0.60, -0.31, "different (better)"),
        (-5.0, 5.0, "undecided"),
    ],
)
def test_outcomes(low: float, high: float, outcome: str) -> None:
    verdict = same_quality(difference(low, high), baseline_fid=12.0, floor=2.0)
    assert verdict.outcome == outcome
    assert verdict.same == (outcome == "same")
    assert verdict.bound == pytest.approx(0.3)


def test_few_images_claim_nothing_and_say_how_many_would() -> None:
    for low, high in ((-0.01, 0.01), (5.0, 6.0)):
        verdict = same_quality(difference(low, high, n=4999), 12.0, 2.0)
        assert verdict.outcome == "n too small"
        assert "5000" in verdict.reason
        assert not verdict.same


def test_a_baseline_as_good_as_real_images_leaves_no_margin() -> None:
    assert same_quality(difference(-0.01, 0.01), 2.0, 2.0).outcome == "undecided"
    assert same_quality(difference(0.0, 0.0), 1.9, 2.0).outcome == "undecided"


def test_what_is_no_95_percent_interval_is_refused() -> None:
    with pytest.raises(UsageError):
        same_quality(Interval(0, -0.1, 0.1, 5000, level=0.5), 12.0, 2.0)
    with pytest.raises(UsageError):
        same_quality(difference(-0.1, 0.1), 12.0, 2.0, margin=0.0)
    with pytest.raises(UsageError):
        same_quality(difference(-0.1, float("nan")), 12.0, 2.0)
