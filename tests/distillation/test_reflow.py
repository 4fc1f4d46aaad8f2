"""Reflow: the velocity along a pair, times of the straight line, the weight, and paths that are straighter after training."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from distillation import mixture
from distillation.test_laws import Small
from torch import Tensor

from vis_accel.distillation import reflow, space
from vis_accel.samplers import create, sample

HIGHEST = 10.0
SIGMA = torch.tensor([0.03, 0.4, 1.0, 9.6], dtype=torch.float64)


def pairs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return HIGHEST * torch.randn(count, 3, dtype=torch.float64, generator=generator), torch.randn(
        count, 3, dtype=torch.float64, generator=generator
    )


def test_along_a_pair_the_velocity_is_noise_minus_image() -> None:
    starts, ends = pairs(4)
    noise = reflow.noise_of(starts, ends, HIGHEST)
    assert torch.allclose(space.noised(ends, noise, torch.full((4,), HIGHEST, dtype=torch.float64)), starts)
    x = space.noised(ends, noise, SIGMA)
    assert torch.allclose(reflow.velocity(ends, x, SIGMA), noise - ends, atol=1e-12)
    s = (SIGMA / (1 + SIGMA))[:, None]
    assert torch.allclose(x / (1 + SIGMA[:, None]), (1 - s) * ends + s * noise)  # the paper's z


def test_a_step_of_euler_on_the_velocity_is_one_of_ddim() -> None:
    x, image = pairs(4)
    lower = SIGMA / 3
    s, t = (SIGMA / (1 + SIGMA))[:, None], (lower / (1 + lower))[:, None]
    reached = x / (1 + SIGMA[:, None]) + (t - s) * reflow.velocity(image, x, SIGMA)
    assert torch.allclose(reached * (1 + lower[:, None]), space.ddim_step(x, image, SIGMA, lower), atol=1e-12)


def test_each_share_goes_to_the_nearest_level() -> None:
    table = torch.tensor([0.25, 1.0, 4.0])  # s = 0.2, 0.5, 0.8
    shares = torch.tensor([0.0, 0.34, 0.36, 0.5, 0.64, 0.66, 1.0])
    assert reflow.nearest(shares, table).tolist() == [0, 0, 1, 1, 1, 2, 2]


def test_the_weight_of_a_network_that_predicts_noise_makes_the_error_its_own() -> None:
    x, image = pairs(4)
    other = image + 0.1
    error = (reflow.velocity(image, x, SIGMA) - reflow.velocity(other, x, SIGMA)).square()
    own = (space.output_for(image, x, SIGMA, "epsilon") - space.output_for(other, x, SIGMA, "epsilon")).square()
    assert torch.allclose(reflow.weight(SIGMA, "epsilon")[:, None] * error, own)
    assert torch.equal(reflow.weight(SIGMA, "v_prediction"), torch.ones(4, dtype=torch.float64))


LEVELS = (*(HIGHEST * (0.03 / HIGHEST) ** (step / 11) for step in range(12)), 0.0)


def run(network: object, starts: Tensor) -> tuple[Tensor, float]:
    """Ends of twelve steps, and the mean curvature of their paths."""
    points, images = [starts], []
    with torch.no_grad():
        for s, t in pairwise(LEVELS):
            here, there = (torch.full((len(starts),), level, dtype=torch.float64) for level in (s, t))
            images.append(network(points[-1], here))  # type: ignore[operator]
            points.append(space.ddim_step(points[-1], images[-1], here, there))
    return points[-1], float(reflow.curvature(points, images, LEVELS).mean())


def test_a_straight_path_has_no_curvature_and_the_teachers_has() -> None:
    starts, ends = pairs(5)
    assert run(lambda x, sigma: ends, starts)[1] == pytest.approx(0, abs=1e-20)
    assert run(mixture.denoise, torch.linspace(-12, 12, 50, dtype=torch.float64)[:, None])[1] > 0.05


def test_after_training_on_a_mixture_the_paths_are_straighter_and_one_step_goes_further() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    starts = mixture.draw(600, generator) + HIGHEST * torch.randn(600, 1, generator=generator, dtype=torch.float64)
    ends = torch.tensor([[mixture.flow(float(x), HIGHEST, 0.0)] for x in starts], dtype=torch.float64)
    noise, student = reflow.noise_of(starts, ends, HIGHEST), Small()
    optimizer = torch.optim.Adam(student.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=1200)
    for _ in range(1200):
        rows = torch.randint(0, 500, (128,), generator=generator)
        share = torch.rand(128, generator=generator, dtype=torch.float64).clamp(0.02, HIGHEST / (1 + HIGHEST))
        sigma = share / (1 - share)
        x = space.noised(ends[rows], noise[rows], sigma)
        loss = (reflow.velocity(student(x, sigma), x, sigma) - (noise - ends)[rows]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    held_out = starts[500:]
    assert run(student, held_out)[1] < 0.2 * run(mixture.denoise, held_out)[1]

    def error(network: object, knots: tuple[float, ...]) -> float:
        with torch.no_grad():
            made = sample(lambda u, s: network(u, torch.full((len(u),), s, dtype=u.dtype)), create("ddim"), held_out, knots)  # type: ignore[operator]
        return float((made - ends[500:]).square().mean().sqrt())

    assert error(student, (HIGHEST, 0.0)) < 0.4 * error(mixture.denoise, (HIGHEST, 0.0))
    assert error(student, (HIGHEST, 1.0, 0.0)) < 0.4 * error(mixture.denoise, (HIGHEST, 1.0, 0.0))
