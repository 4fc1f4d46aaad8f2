"""The analytic first step: one call less, and the step it stands for."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.samplers import NoiseModel, create, plan, sample

CONFIG = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
VP = NoiseModel.from_config(CONFIG)
FLOW = NoiseModel(kind="flow", prediction="flow_prediction")


@pytest.mark.parametrize(
    ("name", "options"), [("ddim", {}), ("dpm", {"order": 2}), ("heun", {}), ("singlestep", {"order": 3}), ("pndm", {})]
)
def test_it_is_the_schedule_without_its_first_knot(name: str, options: dict[str, object]) -> None:
    whole, cut = create(name, steps=6, schedule="karras", **options), create(name, steps=6, schedule="karras", afs=True, **options)
    assert cut.knots(None, VP) == whole.knots(None, VP)[1:]
    assert len(plan(cut, cut.knots(None, VP))) < len(plan(whole, whole.knots(None, VP)))


def test_it_is_the_first_order_step_with_the_sample_as_the_noise() -> None:
    """Dockhorn et al. 2022: epsilon = x_T. That step multiplies x_t by a factor within 0.2% of 1, which is taken as 1."""
    knots = create("ddim", steps=6, schedule="karras").knots(None, VP)
    s, t = knots[:2]

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if sigma == s:
            return x - sigma * x * VP.alpha(sigma)  # of epsilon = x_t
        return torch.tanh(x / (1 + sigma))

    z = torch.linspace(-2, 2, 9, dtype=torch.float64)
    after = sample(denoise, create("ddim"), z / VP.alpha(s), (s, t)) * VP.alpha(t)
    factor = (math.sqrt(1 + s**2) - s + t) / math.sqrt(1 + t**2)
    torch.testing.assert_close(after, factor * z)
    assert abs(factor - 1) < 2e-3
    cut = create("ddim", steps=6, schedule="karras", afs=True)
    whole = sample(denoise, create("ddim"), z / VP.alpha(s), knots)
    torch.testing.assert_close(sample(denoise, cut, z / VP.alpha(t), cut.knots(None, VP)), whole, rtol=0, atol=2e-3)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="there is no other"):
        create("dpm", steps=1, afs=True).knots(None, VP)
    with pytest.raises(NotApplicableError, match="finite first sigma"):
        create("euler", steps=4, afs=True).knots(None, FLOW)
    with pytest.raises(UsageError, match=r"afs.*fast=True"):
        create("singlestep", order=3, fast=True, afs=True)
