"""From the same start, a pipeline under a recipe gives what it gives with diffusers' own scheduler, where that one is right.

Both sides get one table of noise levels, in double precision: the float32 products of diffusers alone are off by 1e-3 at the last times.
"""

from __future__ import annotations

import math
from typing import Any

import diffusers
import pytest
import torch
from pipelines.tiny import BETAS, TINIES, seeds
from torch import Tensor

from vis_accel import accelerate
from vis_accel.samplers import SIGMA_CAP, NoiseModel, schedules

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # diffusers' own

STEPS = 5
TRAILING: dict[str, Any] = {**{k: v for k, v in BETAS.items() if k != "clip_sample"}, "timestep_spacing": "trailing"}


def with_exact_table(scheduler: Any) -> Any:
    noise = NoiseModel.from_config(scheduler.config)
    scheduler.alphas_cumprod = torch.tensor([1 / (1 + s * s) for s in noise.table], dtype=torch.float64)
    return scheduler


def compare(name: str, text: str, scheduler: Any, *, rescale: bool = False, tolerance: float = 2e-5, **options: Any) -> None:
    tiny = TINIES[name]
    pipe = tiny.build()
    pipe.scheduler = scheduler
    start = dict(options)
    if rescale:  # k-diffusion's samplers start from sigma_max z, a variance-preserving model from sqrt(1 + sigma_max^2) z
        s = NoiseModel.from_config(scheduler.config).sigma_max
        start["latents"] = tiny.start((0, 1)) * math.hypot(1, s) / s
    stock = tiny.call(pipe, steps=STEPS, guidance=tiny.guided, **start)
    with accelerate(pipe, text):
        ours = tiny.call(pipe, steps=STEPS, guidance=tiny.guided, **options)
    assert float((ours - stock).abs().max()) <= tolerance * max(1.0, float(stock.abs().max()))


@pytest.mark.parametrize("name", ["DiTPipeline", "StableDiffusionPipeline"])
def test_ddim(name: str) -> None:
    compare(name, "ddim", with_exact_table(diffusers.DDIMScheduler(**TRAILING, clip_sample=False)))


def test_ddim_with_clipping() -> None:
    scheduler = with_exact_table(diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=True))
    compare("DDIMPipeline", "ddim", scheduler, use_clipped_model_output=True)


@pytest.mark.parametrize("name", ["DiTPipeline", "StableDiffusionPipeline", "PixArtAlphaPipeline"])
def test_dpmpp_2m(name: str) -> None:
    compare(name, "dpmpp(schedule='trailing')", with_exact_table(diffusers.DPMSolverMultistepScheduler(**TRAILING)))


def test_unipc() -> None:
    compare("StableDiffusionPipeline", "unipc", with_exact_table(diffusers.UniPCMultistepScheduler(**TRAILING, final_sigmas_type="zero")))


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_euler(name: str) -> None:
    compare(name, "euler", with_exact_table(diffusers.EulerDiscreteScheduler(**TRAILING)), rescale=True)


def test_heun() -> None:
    compare("StableDiffusionPipeline", "heun", with_exact_table(diffusers.HeunDiscreteScheduler(**TRAILING)), rescale=True)


@pytest.mark.parametrize("name", ["StableDiffusionPipeline", "StableDiffusionXLPipeline"])
def test_preconditioned_networks(name: str) -> None:
    """As Playground v2.5 is shipped: SDXL's pipeline, EDM's preconditioning. Stock starts from sqrt(80^2 + 1) z, 1 where q^2 belongs."""
    compare(name, "euler", diffusers.EDMEulerScheduler(), tolerance=1e-3)


@pytest.mark.parametrize("dynamic", [False, True], ids=["shift 3", "shift by image size"])
def test_flow_euler_on_sd3(dynamic: bool) -> None:
    compare("StableDiffusion3Pipeline", "euler", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic))


@pytest.mark.parametrize("dynamic", [False, True], ids=["shift 3", "shift by image size"])
def test_flow_euler_on_flux(dynamic: bool) -> None:
    compare("FluxPipeline", "euler", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=dynamic))


def knots_of(pipe: Any, text: str, name: str) -> Tensor:
    with accelerate(pipe, text):
        TINIES[name].call(pipe, steps=STEPS)
        return torch.tensor([1.0 if s >= SIGMA_CAP else s / (1 + s) for s in pipe.scheduler.knots], dtype=torch.float64)


def test_flow_knots_are_the_schedules_own_for_a_static_shift() -> None:
    pipe = TINIES["StableDiffusion3Pipeline"].build()
    noise = NoiseModel.from_config(pipe.scheduler.config)
    for schedule in ("flow", "trailing"):
        found = knots_of(pipe, f"euler(schedule={schedule!r})", "StableDiffusion3Pipeline")
        wanted = [s / (1 + s) for s in schedules.create(schedule, STEPS, noise)]
        torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_flow_knots_follow_the_recipes_steps_and_the_calls_shift(kind: str) -> None:
    """Flux hands over a ramp of the call's length and the shift for its image size; the recipe has another number of steps."""
    pipe = TINIES["FluxPipeline"].build()
    stock = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type=kind)
    pipe.scheduler = stock
    mu = diffusers.pipelines.flux.pipeline_flux.calculate_shift(16, 256, 4096, 0.5, 1.15)
    stock.set_timesteps(sigmas=torch.linspace(1, 1 / 7, 7).tolist(), mu=mu)
    for schedule in ("auto", "trailing"):
        found = knots_of(pipe, f"euler(steps=7, schedule={schedule!r})", "FluxPipeline")
        torch.testing.assert_close(found, stock.sigmas.double(), rtol=0, atol=2e-6)


def test_the_start_is_the_pipelines_own() -> None:
    """The tests above would not see a start that both sides share and that is wrong."""
    tiny = TINIES["StableDiffusionPipeline"]
    first: list[Tensor] = []
    pipe = tiny.build()
    hook = pipe.unet.register_forward_pre_hook(lambda module, inputs: first.append(inputs[0]))
    with accelerate(pipe, "euler"):
        tiny.call(pipe, generator=seeds((0, 1)))
    hook.remove()
    assert torch.equal(first[0], tiny.start((0, 1)))
