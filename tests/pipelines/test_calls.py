"""What a call may ask for under a recipe: who wins, what is refused, and what reaches the images."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from pipelines.tiny import EDITING, TINIES, normal
from torch import Tensor, nn

from vis_accel import accelerate, pipelines
from vis_accel.errors import NotApplicableError, UsageError

BATCH = (0, 1)
SD = TINIES["StableDiffusionPipeline"]


def picture(channels: int = 4) -> Tensor:
    return normal(9, channels, 8, 8, images=BATCH, dtype=torch.float64)


# Steps.


@pytest.mark.parametrize("name", TINIES)
def test_a_recipes_steps_win_and_without_them_the_calls_count(name: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build()
    with accelerate(pipe, "ddim(steps=3)"), tiny.count(pipe) as counter:
        wanted = tiny.call(pipe, steps=3)
        assert counter.calls == 3
        assert torch.equal(tiny.call(pipe, steps=1), wanted)  # PixArt treats a call of one step in a way of its own
        assert counter.calls == 6
    with accelerate(pipe, "ddim"), tiny.count(pipe) as counter:
        assert torch.equal(tiny.call(pipe, steps=3), wanted)
        assert counter.calls == 3


@pytest.mark.parametrize("name", ["DiTPipeline", "PixArtAlphaPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_one_step_is_the_denoised_image(name: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build()
    network, start = tiny.network(pipe, BATCH, 1.0), tiny.start(BATCH)
    for text in ("ddim", "heun", "dpm(order=3)", "unipc"):
        with accelerate(pipe, text), torch.no_grad():
            found = tiny.call(pipe, steps=1)
            noise, sigma = pipe.scheduler.noise, pipe.scheduler.knots[0]
            wanted = noise.denoised(network(start, noise.time_at(sigma)), start, sigma)
        assert float((found - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max())


def test_a_recipes_steps_win_in_image_to_image() -> None:
    tiny = EDITING["StableDiffusionImg2ImgPipeline"]
    pipe = tiny.build()
    with accelerate(pipe, "ddim(steps=10)"), tiny.count(pipe) as counter:
        tiny.call(pipe, steps=4, image=picture(), strength=0.5)
        assert counter.calls == 5
        with pytest.raises(UsageError, match="none of the 10 steps"):
            tiny.call(pipe, steps=4, image=picture(), strength=0.05)


def test_no_steps_at_all_are_refused() -> None:
    pipe = TINIES["DiTPipeline"].build()
    with accelerate(pipe, "ddim"), pytest.raises(UsageError, match="how many steps"):
        pipe.scheduler.set_timesteps()


def test_a_run_begins_at_the_first_call_of_a_step() -> None:
    """Pipelines without a `get_timesteps` of their own slice the times themselves and say where."""
    pipe = TINIES["DiTPipeline"].build()

    def run(x: Tensor) -> Tensor:
        for t in pipe.scheduler.timesteps[-3:]:
            x = pipe.scheduler.step(0.3 * x, t, x).prev_sample
        return x

    with accelerate(pipe, "heun"):
        pipe.scheduler.set_timesteps(4)  # calls 0, 1 | 2, 3 | 4, 5 | 6
        for inside in (1, 3, 5):
            with pytest.raises(UsageError, match=f"call {inside}"):
                pipe.scheduler.set_begin_index(inside)
        pipe.scheduler.set_begin_index(4)
        found, knots = run(picture()), pipe.scheduler.knots[2:]
    with accelerate(pipe, f"heun(schedule={knots})"):
        pipe.scheduler.set_timesteps()
        assert torch.equal(run(picture()), found)


# What a call brings along.


@pytest.mark.parametrize("given", [{"timesteps": [900, 500, 100]}, {"sigmas": [14.0, 3.0, 0.2]}], ids=["timesteps", "sigmas"])
def test_a_calls_own_schedule_is_refused(given: dict[str, Any]) -> None:
    pipe = SD.build()
    with accelerate(pipe, "dpmpp"), pytest.raises(UsageError, match=next(iter(given))) as caught:
        SD.call(pipe, steps=None, **given)
    assert "dpmpp(schedule=" in str(caught.value.hint)


def test_sigmas_that_are_no_ramp_are_refused_on_flow_pipelines() -> None:
    tiny = TINIES["FluxPipeline"]
    pipe = tiny.build()
    with accelerate(pipe, "euler"), pytest.raises(UsageError, match="sigmas"):
        tiny.call(pipe, sigmas=[1.0, 0.9, 0.3])


@pytest.mark.parametrize("name", ["DDIMPipeline", "StableDiffusionPipeline", "PixArtAlphaPipeline"])
def test_eta_belongs_to_the_recipe(name: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build()
    for text in ("dpmpp", "ddim", "ddim(eta=1.0)"):
        with accelerate(pipe, text), pytest.raises(UsageError, match=r"eta=0\.3"):
            tiny.call(pipe, eta=0.3)
    with accelerate(pipe, "ddim(eta=0.3)"):
        wanted = tiny.call(pipe, eta=0.0)  # every pipeline's default: no wish
        assert torch.equal(tiny.call(pipe, eta=0.3), wanted)
    with accelerate(pipe, "ddim"):
        assert not torch.equal(tiny.call(pipe), wanted)


def test_a_demand_the_solvers_do_not_know_is_refused() -> None:
    pipe = TINIES["DiTPipeline"].build()
    with accelerate(pipe, "ddim"):
        pipe.scheduler.set_timesteps(3)
        x = torch.zeros(1, 4, 8, 8)
        pipe.scheduler.step(x, 0, x, use_clipped_model_output=None, generator=None)
        with pytest.raises(UsageError, match="variance_noise"):
            pipe.scheduler.step(x, 0, x, variance_noise=x)


# SDXL stops early, its refiner starts late.


@pytest.mark.parametrize("text", ["ddim", "dpm(order=1, schedule='trailing')", "euler(steps=10)"])
def test_base_and_refiner_share_a_run(text: str) -> None:
    base, refiner = TINIES["StableDiffusionXLPipeline"], EDITING["StableDiffusionXLImg2ImgPipeline"]
    pipe, second = base.build(), refiner.build()
    second.register_modules(unet=pipe.unet)
    with accelerate(pipe, text), accelerate(second, text):
        whole = base.call(pipe, steps=10, guidance=3.0)
        with base.count(pipe) as counter:
            half = base.call(pipe, steps=10, guidance=3.0, denoising_end=0.6)
            assert counter.calls == 6
            rest = refiner.call(second, steps=10, guidance=3.0, image=half, denoising_start=0.6)
            assert counter.calls == 10
    assert float((rest - whole).abs().max()) <= 1e-6 * float(whole.abs().max())


def test_stopping_inside_a_step_is_refused() -> None:
    tiny = TINIES["StableDiffusionXLPipeline"]
    pipe = tiny.build()
    with accelerate(pipe, "heun"):
        with pytest.raises(UsageError, match="denoising_end"):
            tiny.call(pipe, denoising_end=0.5)
        assert tiny.call(pipe).isfinite().all()


# Precision.


@pytest.mark.parametrize("name", TINIES)
def test_bfloat16_runs_and_stays(name: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build(torch.bfloat16)
    with accelerate(pipe, "dpmpp"):
        found = tiny.call(pipe, guidance=tiny.guided)
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()


@pytest.mark.parametrize("text", ["ddim", "heun", "dpmpp"])
def test_rounding_of_the_samples_does_not_reach_the_state(text: str) -> None:
    """A pipeline that stacks and cuts the sample hands in an equal tensor, not the same one."""
    pipe = TINIES["DiTPipeline"].build()
    with accelerate(pipe, text):

        def run(hand_in: Any, dtype: torch.dtype) -> Tensor:
            pipe.scheduler.set_timesteps(20)
            x = normal(5, 4, 8, 8, images=BATCH, dtype=dtype)
            for t in pipe.scheduler.timesteps:
                x = hand_in(x)
                x = pipe.scheduler.step((0.8 * x + 0.1 * torch.tanh(x.roll(1, 1))), t, x).prev_sample
            return x.double()

        whole = run(lambda x: x, torch.bfloat16)
        assert torch.equal(run(lambda x: torch.cat([x[:1], x[1:]]), torch.bfloat16), whole)
        exact = run(lambda x: x, torch.float64)
        lossy = run(lambda x: torch.nextafter(x, 2 * x), torch.bfloat16)  # every value edited: read back from the samples
        assert (whole - exact).norm() < (lossy - exact).norm()


# Recipes that do not fit.


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("StableDiffusionPipeline", "euler(schedule='flow')"),
        ("StableDiffusion3Pipeline", "euler(schedule='logsnr')"),
        ("StableDiffusion3Pipeline", "euler(schedule='karras')"),
        ("FluxPipeline", "dpmpp(schedule='leading')"),
    ],
)
def test_a_schedule_of_the_other_kind_is_refused(name: str, text: str) -> None:
    pipe = TINIES[name].build()
    stock = pipe.scheduler
    with pytest.raises(NotApplicableError) as caught:
        accelerate(pipe, text)
    assert caught.value.message.count(".") == 1
    assert "schedules of this model" in str(caught.value.hint)
    assert pipe.scheduler is stock


def test_noise_without_a_space_is_refused() -> None:
    pipe = TINIES["DiTPipeline"].build()
    pipe.scheduler = diffusers.CogVideoXDDIMScheduler()
    with pytest.raises(NotApplicableError, match="snr_shift_scale"):
        accelerate(pipe, "euler")


# Pipelines that are not in the table (two that are accepted run in test_push_equals_pull.py).


def stub(name: str) -> Any:
    cls = getattr(diffusers, name)
    pipe = object.__new__(cls)
    vars(pipe).update(scheduler=object(), transformer=nn.Identity())
    return pipe


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("CogVideoXPipeline", "CogVideoXDPMScheduler"),
        ("HiDreamImagePipeline", "UniPCMultistepScheduler"),
        ("CogView4Pipeline", "asks its scheduler for sigmas"),
        ("SanaSprintPipeline", "asks its scheduler for intermediate_timesteps, max_timesteps"),
        ("LTX2Pipeline", "hands its scheduler to other code"),
    ],
)
def test_pipelines_written_for_their_scheduler_are_refused(name: str, reason: str) -> None:
    pytest.importorskip("transformers", reason="diffusers does not export this pipeline without it")
    with pytest.raises(NotApplicableError, match=f"{name} .*{reason}") as caught:
        pipelines.view(stub(name))
    assert "DiTPipeline" in str(caught.value.hint)


class Delegating(diffusers.DiffusionPipeline):
    """Runs another pipeline, as the combined ones do."""

    def __init__(self, unet: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)


def test_a_pipeline_that_does_not_run_its_scheduler_is_refused() -> None:
    parts = TINIES["DDPMPipeline"].build().components
    with pytest.raises(NotApplicableError, match="does not run its scheduler itself"):
        accelerate(Delegating(**parts), "ddim")
    with pytest.raises(NotApplicableError, match="0 denoisers"):
        accelerate(Delegating(None, parts["scheduler"]), "ddim")
    with pytest.raises(NotApplicableError, match="no scheduler"):
        accelerate(Delegating(parts["unet"], None), "ddim")


def test_a_subclass_of_a_known_pipeline_is_read() -> None:
    class Mine(diffusers.DDIMPipeline):
        pass

    stock = TINIES["DDIMPipeline"].build()
    pipe = Mine(**stock.components)
    pipe.set_progress_bar_config(disable=True)
    with accelerate(pipe, "dpmpp"), accelerate(stock, "dpmpp"):
        assert torch.equal(TINIES["DDIMPipeline"].call(pipe), TINIES["DDIMPipeline"].call(stock))


def test_only_pipelines_are_taken() -> None:
    with pytest.raises(NotApplicableError, match="sampler of a diffusion pipeline, and the target has none"):
        accelerate(nn.Identity(), "ddim")
    with pytest.raises(UsageError, match="empty"):
        accelerate(TINIES["DiTPipeline"].build(), "")
