"""Law 6: from the same start, the samplers of diffusers give the same image, where those are right.

Both sides get one table of noise levels: diffusers' float32 products alone are off by 1e-3 at the last times.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from vis_accel.samplers import NoiseModel, create, sample, schedules

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # diffusers' own

BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SHAPE = (2, 3, 4, 4)


def network(x_t: Tensor, time: Any) -> Tensor:
    """Smooth in both arguments, mixes channels, is no denoiser of anything."""
    mixed = x_t.roll(1, 1)
    return 0.9 * x_t * torch.cos(torch.as_tensor(float(time) / 900)) + 0.2 * torch.tanh(mixed) + 0.05


def start() -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(11))


def stock(name: str, **config: Any) -> tuple[Any, NoiseModel]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, name)(**config)
    noise = NoiseModel.from_config(scheduler.config)
    if noise.kind == "vp":
        scheduler.alphas_cumprod = 1 / (1 + torch.tensor(noise.table, dtype=torch.float64) ** 2)
        scheduler.alpha_t, scheduler.sigma_t = scheduler.alphas_cumprod.sqrt(), (1 - scheduler.alphas_cumprod).sqrt()
    return scheduler, noise


def theirs(scheduler: Any, n: int, x: Tensor, seeds: Callable[[int], torch.Generator] | None = None) -> Tensor:
    scheduler.set_timesteps(n)
    for k, t in enumerate(scheduler.timesteps):
        output = network(scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x, t)
        x = scheduler.step(output, t, x, **({"generator": seeds(k)} if seeds else {})).prev_sample
    return x


def ours(name: str, noise: NoiseModel, sigmas: tuple[float, ...], x: Tensor, *, stream: Any = None, **options: Any) -> Tensor:
    return sample(noise.denoiser(network), create(name, **options), x, sigmas, noise=stream)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("spacing", "n"), [("leading", 10), ("leading", 50), ("trailing", 10), ("trailing", 20)])
def test_ddim(spacing: str, n: int, prediction: str) -> None:
    scheduler, noise = stock(
        "DDIMScheduler", timestep_spacing=spacing, clip_sample=False, prediction_type=prediction, steps_offset=1, **BETAS
    )
    sigmas = schedules.create(spacing, n, noise)
    close(ours("ddim", noise, sigmas, start() / noise.alpha(sigmas[0])), theirs(scheduler, n, start()))


@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_ddim_with_fresh_noise(eta: float) -> None:
    scheduler, noise = stock("DDIMScheduler", clip_sample=False, **BETAS)
    sigmas, n, x = schedules.create("leading", 10, noise), 10, start()
    scheduler.set_timesteps(n)
    for k, t in enumerate(scheduler.timesteps):
        x = scheduler.step(network(x, t), t, x, eta=eta, generator=torch.Generator().manual_seed(k)).prev_sample
    draws = iter(range(n))
    got = ours(
        "ddim",
        noise,
        sigmas,
        start() / noise.alpha(sigmas[0]),
        eta=eta,
        stream=lambda like: torch.randn(SHAPE, generator=torch.Generator().manual_seed(next(draws))),
    )
    close(got, x)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddpm(variance: str, clip: bool) -> None:
    scheduler, noise = stock("DDPMScheduler", variance_type=variance, clip_sample=clip, **BETAS)
    sigmas, n = schedules.create("leading", 20, noise), 20

    def seeds(k: int) -> torch.Generator:
        return torch.Generator().manual_seed(100 + k)

    draws = iter(range(n))
    image = ours(
        "ddpm",
        noise,
        sigmas,
        start() / noise.alpha(sigmas[0]),
        variance=variance.replace("_", "-"),
        stream=lambda like: torch.randn(SHAPE, generator=seeds(next(draws))),
    )
    close(image, theirs(scheduler, n, start(), seeds))


@pytest.mark.parametrize(("name", "solver"), [("EulerDiscreteScheduler", "euler"), ("HeunDiscreteScheduler", "heun")])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_euler_and_heun(name: str, solver: str, spacing: str, prediction: str) -> None:
    scheduler, noise = stock(name, timestep_spacing=spacing, prediction_type=prediction, **BETAS)
    sigmas = schedules.create(spacing, 12, noise)
    x = start() * sigmas[0]  # their state is ours: data scale 1
    close(ours(solver, noise, sigmas, x), theirs(scheduler, 12, x))


@pytest.mark.parametrize("n", [1, 2, 5, 12, 20])
@pytest.mark.parametrize("order", [1, 2])
def test_dpmpp(order: int, n: int) -> None:
    scheduler, noise = stock("DPMSolverMultistepScheduler", solver_order=order, timestep_spacing="trailing", **BETAS)
    sigmas = schedules.create("trailing", n, noise)
    close(ours("dpmpp", noise, sigmas, start() / noise.alpha(sigmas[0]), order=order), theirs(scheduler, n, start()))


@pytest.mark.parametrize("n", [5, 12, 20])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_dpm_in_both_predictions_down_to_sigma_min(algorithm: str, n: int) -> None:
    config = {"algorithm_type": algorithm, "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing", **BETAS}
    scheduler, noise = stock("DPMSolverMultistepScheduler", solver_order=2, **config)
    sigmas = schedules.create("trailing", n, noise, end="sigma_min")
    x = ours("dpm", noise, sigmas, start() / noise.alpha(sigmas[0]), prediction="data" if algorithm[-1] == "+" else "noise")
    close(noise.alpha(sigmas[-1]) * x, theirs(scheduler, n, start()))


@pytest.mark.parametrize("n", [3, 8, 14])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("variant", "end"), [("bh2", "zero"), ("bh2", "sigma_min"), ("bh1", "sigma_min")])  # its bh1 is NaN at sigma 0
@pytest.mark.parametrize("corrector", [True, False])
def test_unipc(order: int, variant: str, end: str, corrector: bool, n: int) -> None:
    config = {"solver_order": order, "solver_type": variant, "final_sigmas_type": end, "timestep_spacing": "trailing", **BETAS}
    scheduler, noise = stock("UniPCMultistepScheduler", disable_corrector=[] if corrector else list(range(n)), **config)
    sigmas = schedules.create("trailing", n, noise, end=end)
    x = ours("unipc", noise, sigmas, start() / noise.alpha(sigmas[0]), order=order, variant=variant, corrector=corrector)
    close(noise.alpha(sigmas[-1]) * x, theirs(scheduler, n, start()))


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift: float) -> None:
    scheduler, noise = stock("FlowMatchEulerDiscreteScheduler", shift=shift)
    sigmas = schedules.create("flow", 12, noise)
    close(ours("euler", noise, sigmas, start() / noise.alpha(sigmas[0])), theirs(scheduler, 12, start()))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(
    ("name", "solver", "options"),
    [("EDMEulerScheduler", "euler", {}), ("EDMDPMSolverMultistepScheduler", "dpm", {"order": 2, "lower_order_final": True})],
)
def test_preconditioned_networks(name: str, solver: str, options: dict[str, Any], prediction: str) -> None:
    """The network answers as it likes: what counts is that input, time and output are scaled as the stock scheduler scales them."""
    config = {} if name == "EDMEulerScheduler" else {"solver_order": 2}
    scheduler, noise = stock(name, prediction_type=prediction, **config)
    assert noise.kind == "edm"
    scheduler.set_timesteps(12)
    sigmas = schedules.create("karras", 12, noise)
    assert list(sigmas) == pytest.approx(scheduler.sigmas.tolist(), rel=1e-5)
    x = start() * float(scheduler.init_noise_sigma)
    close(ours(solver, noise, sigmas, x, **options), theirs(scheduler, 12, x))


def test_a_perfect_preconditioned_network_gives_the_image() -> None:
    _, noise = stock("EDMEulerScheduler")
    image = torch.linspace(-1, 1, 12).reshape(1, 3, 2, 2)

    def perfect(x_t: Tensor, time: float) -> Tensor:
        sigma, q = noise.sigma_at(time), noise.data_std
        x = x_t / noise.alpha(sigma)
        return (image - q * q / (sigma * sigma + q * q) * x) * math.hypot(sigma, q) / (sigma * q)

    sigmas = schedules.create("auto", 6, noise)
    torch.testing.assert_close(
        sample(noise.denoiser(perfect), create("heun"), 80 * torch.ones_like(image), sigmas), image, atol=1e-4, rtol=0
    )
