"""Law 3: stochastic solvers have the mean and the variance they should, by superposition and not by luck of the draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from vis_accel.errors import UsageError
from vis_accel.samplers import NoiseModel, NoiseStream, Solver, create, plan, sample

KNOTS = (80.0, 31.0, 7.5, 2.0, 0.61, 0.2, 0.05)


class Scripted:
    """Noise that is 1 at draw number `pulse` and 0 at all others."""

    def __init__(self, pulse: int | None = None) -> None:
        self.pulse, self.draws = pulse, 0

    def __call__(self, like: Tensor) -> Tensor:
        self.draws += 1
        return torch.full_like(like, float(self.draws - 1 == self.pulse))


def gaussian(mean: float, std: float) -> Any:
    def denoise(x: Tensor, sigma: float) -> Tensor:
        return (std**2 * x + sigma**2 * mean) / (std**2 + sigma**2)

    return denoise


def moments(solver: Solver, knots: Sequence[float], mean: float, std: float) -> tuple[float, float]:
    """Mean and variance at the last knot, started from the true marginal at the first; the solver is affine in all its inputs."""

    def end(x: float, pulse: int | None = None) -> tuple[float, int]:
        noise = Scripted(pulse)
        at = torch.tensor([x], dtype=torch.float64)
        return float(sample(gaussian(mean, std), solver, at, knots, noise=noise)), noise.draws

    centre, draws = end(mean)
    start_variance = std**2 + knots[0] ** 2
    gain = end(mean + 1)[0] - centre
    return centre, gain**2 * start_variance + sum((end(mean, k)[0] - centre) ** 2 for k in range(draws))


@pytest.mark.parametrize("last", range(1, len(KNOTS)))
@pytest.mark.parametrize("solver", [create("ddpm"), *(create("ddim", eta=e) for e in (0.0, 0.3, 0.7, 1.0))], ids=str)
def test_noise_level_is_kept_exactly_for_data_at_one_point(solver: Solver, last: int) -> None:
    mean, variance = moments(solver, KNOTS[: last + 1], 0.4, 0.0)
    assert mean == pytest.approx(0.4, rel=1e-12)
    assert variance == pytest.approx(KNOTS[last] ** 2, rel=1e-12)


@pytest.mark.parametrize("last", range(1, len(KNOTS)))
def test_fixed_large_is_exact_for_standard_normal_data(last: int) -> None:
    mean, variance = moments(create("ddpm", variance="fixed-large"), KNOTS[: last + 1], 0.0, 1.0)
    assert mean == pytest.approx(0.0, abs=1e-12)
    assert variance == pytest.approx(1 + KNOTS[last] ** 2, rel=1e-12)


@pytest.mark.parametrize(
    "solver", [create("ddpm"), create("ddpm", variance="fixed-large"), create("ddim", eta=1.0), create("ddim", eta=0.5)], ids=str
)
def test_variance_converges_to_that_of_the_data(solver: Solver) -> None:
    def miss(n: int) -> float:
        knots = [20.0 * (0.05 / 20.0) ** (i / n) for i in range(n + 1)]
        return abs(moments(solver, knots, 0.4, 0.6)[1] - (0.6**2 + 0.05**2))

    assert miss(40) / miss(160) == pytest.approx(4, rel=0.35)  # first order


@pytest.mark.parametrize(
    "finer",
    [lambda n: create("heun", churn=4 / n), lambda n: create("restart", low=0.3, high=2.0, inner=n // 2, times=3)],
    ids=["churn", "restart"],
)
def test_noise_that_is_added_and_taken_away_leaves_the_variance(finer: Callable[[int], Solver]) -> None:
    def miss(n: int) -> float:
        solver = finer(n)
        knots = [20.0 * (0.05 / 20.0) ** (i / n) for i in range(n + 1)]
        return abs(moments(solver, knots, 0.4, 0.6)[1] - (0.6**2 + 0.05**2))

    assert miss(80) < 2e-3
    assert math.log2(miss(80) / miss(160)) == pytest.approx(2, abs=0.4)


@pytest.mark.parametrize(
    ("options", "steps"), [({"schedule": "trailing"}, 3), ({"steps": 1}, None), ({"schedule": (9.0, 4.0, 0.0)}, None)], ids=str
)
def test_a_restart_that_would_never_restart_is_refused(options: dict[str, Any], steps: int | None) -> None:
    config = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    vp = NoiseModel.from_config(config)
    with pytest.raises(UsageError, match=r"restart goes back to high=1 from a knot below that, and of these . steps"):
        create("restart", **options).knots(steps, vp)
    knots = create("restart", steps=12).knots(None, vp)
    assert create("restart").turn(knots) < 1  # type: ignore[attr-defined]


@pytest.mark.parametrize("solver", [create("ddpm"), create("ddpm", variance="fixed-large"), create("ddim", eta=1.0)], ids=str)
def test_no_noise_is_added_when_the_next_sigma_is_zero(solver: Solver) -> None:
    """diffusers lets noise through at the last step when the spacing is trailing (its last time is above 0)."""
    noise = Scripted()
    x = torch.full((2, 3), 0.3, dtype=torch.float64)
    denoise = gaussian(0.1, 0.5)
    last_two = sample(denoise, solver, x, (2.0, 0.7, 0.0), noise=noise)
    assert noise.draws == 1
    before = sample(denoise, solver, x, (2.0, 0.7), noise=Scripted())
    torch.testing.assert_close(last_two, denoise(before, 0.7), rtol=0, atol=1e-15)


# Law 7: seeds.


def noisy(x: Tensor, noise: NoiseStream | None = None) -> Tensor:
    return sample(gaussian(0.2, 0.5), create("ddpm"), x, (10.0, 3.0, 1.0, 0.2, 0.0), noise=noise)


def test_same_seeds_give_the_same_images_and_others_do_not() -> None:
    x = torch.zeros(3, 2, 4)
    assert torch.equal(noisy(x, NoiseStream([1, 2, 3])), noisy(x, NoiseStream([1, 2, 3])))
    assert not torch.equal(noisy(x, NoiseStream([1, 2, 3])), noisy(x, NoiseStream([1, 2, 4])))


def test_noise_of_an_image_does_not_depend_on_its_batch() -> None:
    x = 10 * torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))
    whole = noisy(x)
    assert torch.equal(whole[[3, 1]], noisy(x[[3, 1]]))
    assert torch.equal(noisy(x[:1], NoiseStream([7])), noisy(x, NoiseStream([7, 1, 2, 3, 4]))[:1])
    assert not torch.equal(NoiseStream.from_latent(x)(x)[0], NoiseStream.from_latent(x)(x)[1])


def test_successive_draws_differ_and_look_normal() -> None:
    stream = NoiseStream([5])
    a, b = stream(torch.empty(1, 20_000)), stream(torch.empty(1, 20_000))
    assert abs(float((a * b).mean())) < 0.03
    assert float(a.std()) == pytest.approx(1, abs=0.03)


def test_stream_keeps_dtype_and_refuses_another_batch() -> None:
    stream = NoiseStream([1, 2])
    assert stream(torch.empty(2, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="for 2 images"):
        stream(torch.empty(3, 3))


def test_dry_run_draws_no_noise_and_sampling_never_forgets_it() -> None:
    assert plan(create("ddpm"), KNOTS) == list(KNOTS[:-1])
    x = torch.zeros(1, 8)
    assert float(noisy(x).std()) > 0.05  # the default stream, not silence
