"""The threshold of the first-block cache, calibrated to a number of full calls."""

from __future__ import annotations

import pytest
import torch
from caching.deeper import deeper, latents

from vis_accel import UsageError, accelerate
from vis_accel.caching.thresholds import first_changes, full_calls, threshold_for

STEADY = [[abs(i - j) * 0.1 for j in range(12)] for i in range(12)]  # changes by a tenth a call


def test_the_decision_by_hand() -> None:
    assert full_calls(STEADY, 0.0, 3) == list(range(12))
    assert full_calls(STEADY, 0.05, 3) == list(range(12))
    assert full_calls(STEADY, 0.15, 3) == [0, 2, 4, 6, 8, 10, 11]
    assert full_calls(STEADY, 0.25, 3) == [0, 3, 6, 9, 10, 11]
    assert full_calls(STEADY, 0.99, 3) == [0, 4, 8, 10, 11]


@pytest.mark.parametrize(("full", "threshold"), [(7, 0.1001), (6, 0.2001), (5, 0.3001)])
def test_the_smallest_threshold_that_does(full: int, threshold: float) -> None:
    assert threshold_for(STEADY, full, 3) == pytest.approx(threshold)
    assert len(full_calls(STEADY, threshold, 3)) == full


def test_what_no_threshold_can_do_is_refused() -> None:
    with pytest.raises(UsageError, match="5 is the least"):
        threshold_for(STEADY, 4, 3)


def test_a_run_has_about_as_many_full_calls_as_it_was_calibrated_to() -> None:
    pipe = deeper("DiTPipeline", torch.float32)
    with accelerate(pipe, "ddim(steps=16)"):
        changes = first_changes(pipe.transformer, lambda: latents(pipe))
    assert len(changes) == 16
    assert changes[3][3] == 0
    assert changes[3][9] > 0
    least = len(full_calls(changes, 0.9999, 3))
    wanted = (16 + least) // 2
    threshold = threshold_for(changes, wanted, 3)
    with accelerate(pipe, f"firstblock(threshold={threshold}) + ddim(steps=16)") as handle:
        latents(pipe)
        assert abs(handle.report()["calls in full"] - wanted) <= 2
