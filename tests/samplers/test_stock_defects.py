"""What diffusers 0.42.1 gets wrong, one test for each, named after it: theirs errs as described, ours does not.

A test that fails because the stock side has been mended is good news: drop it, and its line in docs/diffusion.md.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from vis_accel.samplers import NoiseModel, create, sample, schedules
from vis_accel.samplers.dpm import combined
from vis_accel.samplers.exponential import phi
from vis_accel.samplers.sde import drift

pytestmark = pytest.mark.filterwarnings("ignore")  # diffusers' own

IMAGE = 0.3  # the only image there is: every level's noise is then known, and a right sampler never loses it


def stock(name: str, **config: Any) -> tuple[Any, NoiseModel]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = getattr(diffusers, name)(**config)
    return scheduler, NoiseModel.from_config(scheduler.config)


def start() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(11))


def epsilon(scheduler: Any, x_t: Tensor, time: Any) -> Tensor:
    """What a perfect network answers at that time."""
    signal = scheduler.alphas_cumprod[int(time)]
    return (x_t - signal.sqrt() * IMAGE) / (1 - signal).sqrt()


def seen_noise(name: str, n: int, **config: Any) -> list[Tensor]:
    """The noise a perfect network finds at each call of a stock scheduler. It should be the same every time."""
    scheduler, _ = stock(name, **config)
    scheduler.set_timesteps(n)
    x, found = start(), []
    for t in scheduler.timesteps:
        found.append(epsilon(scheduler, x, t))
        x = scheduler.step(found[-1], t, x).prev_sample
    return found


def our_noise(name: str, schedule: str, n: int, **config: Any) -> list[Tensor]:
    noise, found = NoiseModel.from_config(stock("DDIMScheduler", **config)[0].config), []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        found.append((x - IMAGE) / sigma)
        return torch.full_like(x, IMAGE)

    knots = schedules.create(schedule, n, noise)
    sample(denoise, create(name), start().double() / noise.alpha(knots[0]), knots)
    return found


def drifted(noises: Sequence[Tensor]) -> float:
    return max(float((later - noises[0]).abs().max()) for later in noises)


@pytest.mark.parametrize(("theirs", "ours", "more"), [("DDIMScheduler", "ddim", {"clip_sample": False}), ("PNDMScheduler", "plms", {})])
def test_linspace_of_ddim_and_pndm_asks_at_a_time_the_sample_is_not_at(theirs: str, ours: str, more: dict[str, Any]) -> None:
    """`step` goes to t - T // n, and the next call is at another time: 11 of 1000 away for ten steps."""
    plms = {"skip_prk_steps": True} if theirs == "PNDMScheduler" else {}
    assert drifted(seen_noise(theirs, 10, timestep_spacing="linspace", **more, **plms)) > 0.05
    assert drifted(seen_noise("DDIMScheduler", 10, timestep_spacing="trailing", clip_sample=False)) < 1e-3
    assert drifted(our_noise(ours, "linspace", 10)) < 1e-6


def test_leading_never_visits_the_last_time() -> None:
    """Its first call is at 900 of 1000 for ten steps, though the input is pure noise; nothing here chooses it by itself."""
    scheduler, noise = stock("DDIMScheduler")
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) == 900
    for name in ("ddim", "dpm", "ipndm"):
        assert create(name).knots(10, noise)[0] == noise.sigma_max


def test_unipc_to_zero_at_full_order_is_nan() -> None:
    scheduler, noise = stock("UniPCMultistepScheduler", lower_order_final=False, final_sigmas_type="zero", timestep_spacing="trailing")
    scheduler.set_timesteps(8)
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.step(epsilon(scheduler, x, t), t, x).prev_sample
    assert bool(x.isnan().any())
    knots = schedules.create("trailing", 8, noise)
    end = sample(lambda x, _: torch.full_like(x, IMAGE), create("unipc", lower_order_final=False), start() / noise.alpha(knots[0]), knots)
    torch.testing.assert_close(end, torch.full_like(end, IMAGE))


def test_the_third_order_of_the_stochastic_solver_has_a_wrong_sign() -> None:
    """Fed with a quadratic of lambda and silent noise, a third-order step is an integral; theirs misses it by a tenth, ours by rounding."""
    scheduler, _ = stock("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_order=3)
    scheduler.sigmas = torch.tensor([3.0, 2.1, 1.2, 0.8], dtype=torch.float64)
    scheduler._step_index = 2
    knots = scheduler.sigmas.tolist()
    values = [torch.tensor([0.7 + 0.4 * u + 0.9 * u * u], dtype=torch.float64) for u in (-math.log(s) for s in knots[:3])]
    x = torch.tensor([0.3], dtype=torch.float64)
    alpha = 1 / math.hypot(1, knots[3])
    before = 1 / math.hypot(1, knots[2])
    theirs = scheduler.multistep_dpm_solver_third_order_update(values, sample=before * x, noise=torch.zeros_like(x)) / alpha
    nodes = [(knots[k], values[k]) for k in (2, 1, 0)]
    ours = combined((knots[3] / knots[2]) ** 2, x, drift(knots[3], nodes), nodes)
    a, b = (-math.log(knots[k]) for k in (2, 3))
    grid = torch.linspace(a, b, 20_001, dtype=torch.float64)
    weight = 2 * torch.exp(2 * (grid - b)) * (0.7 + 0.4 * grid + 0.9 * grid**2)  # d(x / sigma^2) / dlambda = 2 D / sigma^2
    exact = (knots[3] / knots[2]) ** 2 * x + torch.trapezoid(weight, grid)
    torch.testing.assert_close(ours, exact, rtol=0, atol=1e-8)
    assert abs(float(theirs - exact)) > 0.1


def test_the_third_order_of_the_multistep_solver_lacks_a_factor() -> None:
    """The same for the deterministic one: half of the second derivative is missing, in the papers' code and in its copies too."""
    scheduler, _ = stock("DPMSolverMultistepScheduler", solver_order=3)
    scheduler.sigmas = torch.tensor([3.0, 2.1, 1.2, 0.8], dtype=torch.float64)
    scheduler._step_index = 2
    knots = scheduler.sigmas.tolist()
    values = [torch.tensor([0.7 + 0.4 * u + 0.9 * u * u], dtype=torch.float64) for u in (-math.log(s) for s in knots[:3])]
    x = torch.tensor([0.3], dtype=torch.float64)
    before, alpha = (1 / math.hypot(1, knots[k]) for k in (2, 3))
    theirs = scheduler.multistep_dpm_solver_third_order_update(values, sample=before * x) / alpha
    h = math.log(knots[2] / knots[3])
    second = 2 * 0.9 * h**2  # of 0.7 + 0.4 u + 0.9 u^2, in units of h
    history = [(knots[k], x, values[k]) for k in (0, 1)]
    solver = create("dpm", order=3, lower_order_final=False)
    ours = sample(lambda x, _: values[2], solver, x, (knots[2], knots[3]), history=history)
    torch.testing.assert_close(theirs, ours - h * phi(3, -h) * second / 2, rtol=0, atol=1e-12)


def test_ipndm_is_no_sampler_for_an_epsilon_model() -> None:
    """It takes the network's output for the velocity of Dance Diffusion's sine schedule."""
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(10)
    x = start()
    table = diffusers.DDIMScheduler()
    for t in scheduler.timesteps:
        x = scheduler.step(epsilon(table, x, float(t) * 999), t, x).prev_sample
    assert float((x - IMAGE).abs().mean()) > 0.02  # where a right one ends at the image itself
    noise = NoiseModel.from_config(table.config)
    knots = schedules.create("karras", 10, noise)
    end = sample(lambda x, _: torch.full_like(x, IMAGE), create("ipndm"), start() / noise.alpha(knots[0]), knots)
    torch.testing.assert_close(end, torch.full_like(end, IMAGE))


def test_deis_leaves_the_last_noise_in_the_image() -> None:
    scheduler, noise = stock("DEISMultistepScheduler", timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    x = start()
    for t in scheduler.timesteps:
        x = scheduler.step(epsilon(scheduler, x, t), t, x).prev_sample
    assert float((x - IMAGE).std()) > 0.005
    knots = schedules.create("trailing", 10, noise)
    end = sample(lambda x, _: torch.full_like(x, IMAGE), create("deis"), start() / noise.alpha(knots[0]), knots)
    assert float((end - IMAGE).abs().max()) < 1e-5


def test_fixed_large_log_is_nan() -> None:
    scheduler, noise = stock("DDPMScheduler", variance_type="fixed_large_log")
    scheduler.set_timesteps(10)
    t, x = scheduler.timesteps[0], start()
    assert bool(scheduler.step(epsilon(scheduler, x, t), t, x, generator=torch.Generator().manual_seed(0)).prev_sample.isnan().any())
    knots = schedules.create("trailing", 10, noise)
    end = sample(lambda x, _: 0.5 * x, create("ddpm", variance="fixed-large"), start() / noise.alpha(knots[0]), knots)
    assert bool(end.isfinite().all())


def test_fixed_large_adds_noise_to_the_finished_image_when_trailing() -> None:
    scheduler, noise = stock("DDPMScheduler", variance_type="fixed_large", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(20)
    t, x = scheduler.timesteps[-1], start()
    a, b = (scheduler.step(epsilon(scheduler, x, t), t, x, generator=torch.Generator().manual_seed(k)).prev_sample for k in (1, 2))
    assert float((a - b).std()) > 0.05
    sigma = schedules.create("trailing", 20, noise)[-2]
    last = create("ddpm", variance="fixed-large")
    ends = [sample(lambda x, _: 0.5 * x, last, x / noise.alpha(sigma), (sigma, 0.0), noise=torch.randn_like) for _ in range(2)]
    assert torch.equal(*ends)


def test_beta_schedule_spreads_its_quantiles_over_sigmas() -> None:
    """The paper spreads them over times: dense at both ends. Over sigmas nearly all of them lie at large noise."""
    scheduler, noise = stock("DPMSolverMultistepScheduler", use_beta_sigmas=True, timestep_spacing="trailing")
    scheduler.set_timesteps(10)
    above = {"theirs": 0, "ours": 0}
    for name, knots in (("theirs", scheduler.sigmas.tolist()), ("ours", schedules.create("beta", 10, noise))):
        above[name] = sum(sigma > 10 for sigma in knots)
    assert above["theirs"] >= 8
    assert 3 <= above["ours"] <= 5


def test_karras_knots_of_a_cosine_table_share_times() -> None:
    """Whole times for knots between them: the network is asked twice at one time, and never where the sample is."""
    scheduler, noise = stock("DPMSolverMultistepScheduler", beta_schedule="squaredcos_cap_v2", use_karras_sigmas=True)
    scheduler.set_timesteps(30)
    theirs = scheduler.timesteps.tolist()
    assert len(set(theirs)) < len(theirs)
    ours = [noise.time_at(sigma) for sigma in schedules.create("karras", 30, noise)[:-1]]
    assert all(a > b for a, b in pairwise(ours))


def test_euler_starts_from_noise_of_the_wrong_size() -> None:
    """sigma_max where sqrt(1 + sigma_max^2) belongs: small, but enough to break agreement between samplers."""
    scheduler, noise = stock("EulerDiscreteScheduler", timestep_spacing="trailing", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(10)
    assert float(scheduler.init_noise_sigma) == pytest.approx(noise.sigma_max, rel=1e-4)
    assert 1 / noise.alpha(noise.sigma_max) == pytest.approx(math.hypot(1, noise.sigma_max))
