"""Segments of a path: the solver's knots with the student's among them, the weight of an error, and what a trained student gains."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from distillation import mixture
from distillation.test_laws import Small
from torch import Tensor

from vis_accel.distillation import progressive, segments, space
from vis_accel.errors import UnknownNameError, UsageError
from vis_accel.samplers import create, sample

KNOTS = (10.0, 2.5, 0.7, 0.2, 0.0)


def test_the_students_knots_take_the_place_of_their_nearest() -> None:
    path = (160.0, 80.0, 20.0, 4.0, 1.2, 0.3, 0.05, 0.0)
    assert segments.through(path, (17.0, 0.9)) == (160.0, 80.0, 17.0, 4.0, 0.9, 0.3, 0.05, 0.0)
    assert segments.through(path, (1.1, 1.0)) == (160.0, 80.0, 20.0, 4.0, 1.1, 1.0, 0.05, 0.0)  # both nearest to one
    assert segments.through(path, (4.0, 3.9)) == (160.0, 80.0, 20.0, 4.0, 3.9, 0.3, 0.05, 0.0)  # one is there
    assert segments.through(path, ()) == path
    assert segments.through(path, (150.0,))[:2] == (160.0, 150.0)  # never that of the start


@pytest.mark.parametrize("path", [(10.0, 0.0), (10.0, 3.0, 0.0)])
def test_a_path_with_too_few_knots_is_refused(path: tuple[float, ...]) -> None:
    with pytest.raises(UsageError, match="each of the 2 noise levels"):
        segments.through(path, (2.0, 1.0))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_lands_where_the_samplers_noise_begins(eta: float) -> None:
    x, image = torch.full((1, 1), 3.0, dtype=torch.float64), 0.5
    for s, t, landing in zip(KNOTS, KNOTS[1:], segments.landings(KNOTS, eta), strict=False):
        made = sample(lambda u, _: torch.full_like(u, image), create("ddim", eta=eta), x, (s, t), noise=torch.zeros_like)
        sigma, lower = (torch.tensor([level], dtype=torch.float64) for level in (s, landing))
        assert torch.allclose(made, space.ddim_step(x, torch.full_like(x, image), sigma, lower), atol=1e-12)
    assert segments.landings(KNOTS, 0.0) == KNOTS[1:]


@pytest.mark.parametrize("prediction", space.PREDICTIONS)
def test_the_weight_makes_an_error_of_the_image_one_of_the_output(prediction: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, found, wanted = (torch.randn(4, 5, dtype=torch.float64, generator=generator) for _ in range(3))
    sigma = torch.tensor([0.03, 0.4, 1.0, 14.6], dtype=torch.float64)
    apart = [space.output_for(image, x, sigma, prediction) for image in (found, wanted)]
    weighted = segments.output_weight(sigma, prediction)[:, None] * (found - wanted).square()
    assert torch.allclose(weighted, (apart[0] - apart[1]).square())
    with pytest.raises(UnknownNameError, match="flow_prediction"):
        segments.output_weight(sigma, "flow_prediction")


def states(x: Tensor) -> Tensor:
    """Along the exact path from x (B x 1) at the first knot: B x 5."""
    found = [x]
    for s, t in pairwise(KNOTS):
        found.append(torch.tensor([[mixture.flow(float(u), s, t)] for u in found[-1]], dtype=torch.float64))
    return torch.cat(found, dim=1)


def test_the_targets_of_all_segments_are_the_whole_path() -> None:
    path = states(torch.tensor([[-9.0], [0.5], [12.0]], dtype=torch.float64))
    x = path[:, :1]
    for place, (s, t) in enumerate(pairwise(KNOTS)):
        sigma, lower = torch.full((3,), s, dtype=torch.float64), torch.full((3,), t, dtype=torch.float64)
        x = space.ddim_step(x, progressive.two_steps(x, path[:, [place + 1]], sigma, lower), sigma, lower)
        assert torch.allclose(x, path[:, [place + 1]], atol=1e-12)


def test_four_steps_of_a_trained_student_end_nearer_than_eight_of_a_solver() -> None:
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    x = mixture.draw(600, generator) + KNOTS[0] * torch.randn(600, 1, generator=generator, dtype=torch.float64)
    path, sigmas = states(x), torch.tensor(KNOTS, dtype=torch.float64)
    train, held_out = path[:500], path[500:]
    student = Small()
    optimizer = torch.optim.Adam(student.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=1200)
    for _ in range(1200):
        rows = torch.randint(0, len(train), (128,), generator=generator)
        places = torch.randint(0, 4, (128,), generator=generator)
        here, sigma, lower = train[rows, places][:, None], sigmas[places], sigmas[places + 1]
        wanted = progressive.two_steps(here, train[rows, places + 1][:, None], sigma, lower)
        weight = segments.output_weight(sigma, "v_prediction")[:, None]
        loss = (weight * (student(here, sigma) - wanted).square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()

    def error(network: object, name: str, knots: tuple[float, ...]) -> float:
        with torch.no_grad():
            made = sample(lambda u, s: network(u, torch.full((len(u),), s, dtype=u.dtype)), create(name), held_out[:, :1], knots)  # type: ignore[operator]
        return float((made[:, 0] - held_out[:, 4]).square().mean().sqrt())

    eight = (*(10.0 * (0.03 / 10.0) ** (step / 7) for step in range(8)), 0.0)
    assert error(student, "ddim", KNOTS) < 0.7 * error(mixture.denoise, "dpm", eight)
    assert error(student, "ddim", KNOTS) < 0.2 * error(mixture.denoise, "ddim", KNOTS)
