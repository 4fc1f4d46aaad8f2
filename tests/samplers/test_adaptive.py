"""The adaptive solver meets the closed form at the tolerance it is given, with the calls it says it makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vis_accel.errors import RunError, UsageError
from vis_accel.samplers.adaptive import sample_adaptive


def test_a_smaller_tolerance_takes_more_calls_and_ends_nearer(mixture: Any) -> None:
    x = torch.tensor([[6.3], [-2.0]], dtype=torch.float64)
    exact = [mixture.flow(float(value), 10.0, 0.05) for value in x]
    missed, calls = [], []
    for tolerance in (0.05, 0.005, 0.0005):
        seen: list[float] = []

        def denoise(y: Tensor, sigma: float, seen: list[float] = seen) -> Tensor:
            seen.append(sigma)
            return mixture.denoise(y, sigma)  # type: ignore[no-any-return]

        found = sample_adaptive(denoise, x, 10.0, 0.05, relative=tolerance, absolute=tolerance / 6)
        assert found.calls == len(seen)
        assert found.sigmas[0] == 10.0
        assert found.sigmas[-1] == 0.05
        assert all(a > b for a, b in zip(found.sigmas, found.sigmas[1:], strict=False))
        calls.append(found.calls)
        missed.append(max(abs(float(end) - value) for end, value in zip(found.x, exact, strict=True)))
    assert calls[0] < calls[1] < calls[2]
    assert missed[0] > missed[1] > missed[2]
    assert missed[2] < 1e-3


def test_a_step_that_errs_too_much_is_tried_again(mixture: Any) -> None:
    x = torch.tensor([[6.3]], dtype=torch.float64)
    bold = sample_adaptive(mixture.denoise, x, 10.0, 0.05, step=5.0, relative=1e-3, absolute=1e-4)
    assert bold.refused > 0
    assert bold.calls == 1 + 2 * (len(bold.sigmas) - 1 + bold.refused) + len(bold.sigmas) - 2
    assert abs(float(bold.x) - mixture.flow(6.3, 10.0, 0.05)) < 2e-3


@pytest.mark.parametrize(("first", "last", "options"), [(1.0, 2.0, {}), (1.0, 0.0, {}), (1e6, 1.0, {}), (2.0, 1.0, {"relative": 0.0})])
def test_what_makes_no_sense_is_refused(mixture: Any, first: float, last: float, options: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        sample_adaptive(mixture.denoise, torch.zeros(1, 1), first, last, **options)


def test_a_state_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(RunError, match="no longer finite"):
        sample_adaptive(lambda x, _: x * float("nan"), torch.ones(1, 1), 10.0, 0.1)
