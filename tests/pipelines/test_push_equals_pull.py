"""The law of the adapter: a pipeline's final latents are what `sample` gives over the same guided network, for every solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from pipelines.tiny import EDITING, TINIES, Tiny, normal
from torch import Tensor

from vis_accel import accelerate
from vis_accel.errors import NotApplicableError
from vis_accel.recipe import Recipe
from vis_accel.samplers import NoiseModel, Solver, plan, sample, schedules
from vis_accel.samplers.driver import LatentNoise

SOLVERS = (
    "ddim",
    "ddim(eta=1.0)",
    "ddpm",
    "euler",
    "heun",
    "dpm(order=1)",
    "dpm(order=2)",
    "dpm(order=3, lower_order_final=False)",
    "dpm(order=2, prediction='noise')",
    "unipc",
    "unipc(order=3, lower_order_final=False)",
    "ipndm",
    "deis",
    "deis(variable='t')",
    "singlestep(order=3)",
    "singlestep(order=3, fast=True)",
    "dpm-sde(order=3)",
    "pndm",
    "plms",
    "heun(churn=0.2)",
    "restart(low=0.5, high=2.0)",
)
BATCH = (0, 1)


def solver(text: str) -> Solver:
    (method,) = Recipe.parse(text).methods
    assert isinstance(method, Solver)
    return method


def expected(tiny: Tiny, pipe: Any, text: str, guidance: float, knots: tuple[float, ...]) -> Tensor:
    """The pull form: no pipeline, no adapter."""
    noise = NoiseModel.from_config(pipe.scheduler.config)
    denoise = noise.denoiser(tiny.network(pipe, BATCH, guidance))
    with torch.no_grad():
        return tiny.finish(sample(denoise, solver(text), tiny.start(BATCH) / noise.alpha(knots[0]), knots))


def assert_equal(found: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    assert found.shape == wanted.shape
    assert bool(wanted.isfinite().all())
    assert float((found - wanted).abs().max()) <= tolerance * max(1.0, float(wanted.abs().max()))


@pytest.mark.parametrize("text", SOLVERS)
@pytest.mark.parametrize("name", TINIES)
def test_every_solver_in_every_pipeline(name: str, text: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build()
    noise = NoiseModel.from_config(pipe.scheduler.config)
    with accelerate(pipe, text):
        for guidance in (1.0, tiny.guided) if tiny.guidance_name else (1.0,):
            with tiny.count(pipe) as counter:
                found = tiny.call(pipe, guidance=guidance)
            # A flow pipeline shifts by its own configuration; test_same_as_stock holds its knots to the stock scheduler's.
            knots = solver(text).knots(4, noise) if noise.kind == "vp" else pipe.scheduler.knots
            assert_equal(found, expected(tiny, pipe, text, guidance, knots))
            true_guidance = 2 if name == "FluxPipeline" and guidance > 1 else 1  # its two halves are two calls
            assert counter.calls == len(plan(solver(text), knots)) * true_guidance


@pytest.mark.parametrize("text", ["dpm(order=2, afs=True)", "heun(afs=True)", "ddpm(afs=True)"])
@pytest.mark.parametrize("name", ["DiTPipeline", "DDPMPipeline", "StableDiffusionPipeline"])
def test_a_first_step_without_the_network(name: str, text: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build()
    with accelerate(pipe, text), tiny.count(pipe) as counter:
        found = tiny.call(pipe, guidance=1.0)
        knots = solver(text).knots(4, NoiseModel.from_config(pipe.scheduler.config))
    assert_equal(found, expected(tiny, pipe, text, 1.0, knots))
    assert counter.calls == (5 if text.startswith("heun") else 3)


@pytest.mark.parametrize("text", ["dpm(schedule='logsnr')", "heun(schedule='karras')", "unipc(schedule='quadratic', steps=5)"])
def test_times_between_the_networks_own(text: str) -> None:
    tiny = TINIES["DiTPipeline"]
    pipe = tiny.build()
    with accelerate(pipe, text):
        found = tiny.call(pipe, guidance=3.0)
        knots = solver(text).knots(4, NoiseModel.from_config(pipe.scheduler.config))
        assert pipe.scheduler.num_inference_steps == len(knots) - 1
        assert_equal(found, expected(tiny, pipe, text, 3.0, knots))


@pytest.mark.parametrize("text", ["ddim", "ddpm", "dpm(order=2)"])
def test_clipping_of_the_source_is_honoured(text: str) -> None:
    tiny = TINIES["DDPMPipeline"]
    pipe = tiny.build()
    pipe.scheduler = diffusers.DDPMScheduler(clip_sample=True, clip_sample_range=0.7)  # epsilon, far outside the range early on
    with accelerate(pipe, text):
        found = tiny.call(pipe)
        knots = solver(text).knots(4, NoiseModel.from_config(pipe.scheduler.config))
        assert_equal(found, expected(tiny, pipe, text, 1.0, knots))
    assert 0.15 - 1e-6 <= float(found.min()) <= float(found.max()) <= 0.85 + 1e-6  # +-0.7, seen as an image
    pipe.scheduler = diffusers.DDPMScheduler(clip_sample=False)
    with accelerate(pipe, text):
        assert float(tiny.call(pipe).max()) == 1.0  # so that the clipping above did something


def test_learned_variance_reaches_the_scheduler() -> None:
    tiny = TINIES["DDPMPipeline"]
    pipe = diffusers.DDPMPipeline(*_learned_variance(tiny))
    pipe.set_progress_bar_config(disable=True)
    knots = schedules.create("trailing", 4, NoiseModel.from_config(pipe.scheduler.config))
    images = {}
    for text in ("ddpm", "ddpm(variance='learned')"):
        with accelerate(pipe, text):
            images[text] = tiny.call(pipe)
            assert_equal(images[text], expected(tiny, pipe, text, 1.0, knots))
    assert not torch.equal(*images.values())


def test_a_network_that_learned_no_variance_is_told_so() -> None:
    tiny = TINIES["DDPMPipeline"]
    pipe = tiny.build()
    with accelerate(pipe, "ddpm(variance='learned')"), pytest.raises(NotApplicableError, match="no learned variance"):
        tiny.call(pipe)


def _learned_variance(tiny: Tiny) -> tuple[Any, Any]:
    stock = tiny.build()
    unet = diffusers.UNet2DModel.from_config({**stock.unet.config, "out_channels": 6}).double().eval()
    scheduler = diffusers.DDPMScheduler(prediction_type="v_prediction", clip_sample=False, variance_type="learned_range")
    return unet, scheduler


# Starting in the middle, and edits on the way.


def pulled(denoise: Any, text: str, x: Tensor, knots: tuple[float, ...], edit: Callable[[Tensor, float], Tensor]) -> Tensor:
    """`sample`, with an edit of the state after each call, at the level it then has."""
    run = solver(text).solve(x, knots, noise=LatentNoise(x))
    with torch.no_grad():
        x, sigma = next(run)
        while True:
            try:
                x, sigma = run.send((x, denoise(x, sigma)))
            except StopIteration as end:
                return edit(end.value, 0.0)
            x = edit(x, sigma)


def picture(images: tuple[int, ...] = BATCH) -> Tensor:
    """Latents in place of an image: the pipelines take them as they are, without the autoencoder."""
    return normal(9, 4, 8, 8, images=images, dtype=torch.float64)


@pytest.mark.parametrize("text", ["ddim(eta=1.0)", "heun", "dpm(order=2)", "unipc"])
@pytest.mark.parametrize(
    ("name", "steps_at"),
    [
        ("StableDiffusionImg2ImgPipeline", {0.2: 1, 0.5: 2, 0.8: 4}),
        ("StableDiffusionXLImg2ImgPipeline", {0.5: 2, 0.8: 4}),
        ("StableDiffusion3Img2ImgPipeline", {0.5: 3, 0.8: 4}),  # the flow pipelines round the other way
    ],
)
def test_image_to_image_starts_at_a_knot(name: str, steps_at: dict[float, int], text: str) -> None:
    tiny = EDITING[name]
    pipe = tiny.build()
    noise = NoiseModel.from_config(pipe.scheduler.config)
    with accelerate(pipe, text):
        for strength, steps in steps_at.items():
            with tiny.count(pipe) as counter:
                found = tiny.call(pipe, steps=5, guidance=3.0, image=picture(), strength=strength)
            knots = pipe.scheduler.knots
            assert len(knots) == steps + 1
            if noise.kind == "vp":
                assert knots == solver(text).knots(5, noise)[5 - steps :]
            assert counter.calls == len(plan(solver(text), knots))
            x = picture() + knots[0] * tiny.start(BATCH)
            with torch.no_grad():
                wanted = sample(noise.denoiser(tiny.network(pipe, BATCH, 3.0)), solver(text), x, knots, noise=_stream(noise, x, knots[0]))
            assert_equal(found, wanted)


def _stream(noise: NoiseModel, x: Tensor, sigma: float) -> Any:
    """The noise of a run whose first latent went through the pipeline's scale and float32 tables of alpha."""
    alpha = torch.tensor([noise.alpha(sigma), noise.alpha(sigma) * sigma], dtype=torch.float32)
    start = alpha[0] * picture() + alpha[1] * (x - picture()) / sigma
    return LatentNoise(start.double() / noise.alpha(sigma))


@pytest.mark.parametrize("text", ["ddim", "heun", "dpm(order=2)", "unipc"])
@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(channels: int, text: str) -> None:
    tiny = EDITING["StableDiffusionInpaintPipeline"]
    pipe = tiny.build()
    if channels == 9:
        unet = diffusers.UNet2DConditionModel.from_config({**pipe.unet.config, "in_channels": 9}).double().eval()
        pipe.register_modules(unet=unet)
    noise = NoiseModel.from_config(pipe.scheduler.config)
    image, mask = picture(), torch.zeros(2, 1, 8, 8, dtype=torch.float64)
    mask[:, :, :, 4:] = 1.0
    plain = tiny.network(pipe, BATCH, 3.0)

    def network(x: Tensor, time: float) -> Tensor:
        return plain(torch.cat([x, mask, image * (mask < 0.5)], dim=1) if channels == 9 else x, time)

    def edit(x: Tensor, sigma: float) -> Tensor:
        return x if channels == 9 else (1 - mask) * (image + sigma * tiny.start(BATCH)) + mask * x

    for strength, steps in ((0.5, 2), (1.0, 5)):
        with accelerate(pipe, text):
            found = tiny.call(pipe, steps=5, guidance=3.0, image=image, mask_image=mask, strength=strength)
            knots = pipe.scheduler.knots
        assert len(knots) == steps + 1
        start = tiny.start(BATCH) / noise.alpha(knots[0]) if strength == 1 else image + knots[0] * tiny.start(BATCH)
        assert_equal(found, pulled(noise.denoiser(network), text, start, knots, edit))


@pytest.mark.parametrize("in_place", [False, True], ids=["a new tensor", "in place"])
@pytest.mark.parametrize("text", ["euler", "heun", "dpm(order=2)"])
def test_edits_by_a_callback_take_effect(text: str, in_place: bool) -> None:
    tiny = TINIES["StableDiffusionPipeline"]
    pipe = tiny.build()
    noise = NoiseModel.from_config(pipe.scheduler.config)

    def callback(pipe: Any, index: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if in_place:
            tensors["latents"].mul_(0.9)
            return {}
        return {"latents": tensors["latents"] * 0.9}

    with accelerate(pipe, text):
        found = tiny.call(pipe, guidance=3.0, callback_on_step_end=callback)
        knots = pipe.scheduler.knots
    x = tiny.start(BATCH) / noise.alpha(knots[0])
    wanted = pulled(noise.denoiser(tiny.network(pipe, BATCH, 3.0)), text, x, knots, lambda x, sigma: 0.9 * x)
    assert_equal(found, wanted)
