"""A pipeline under a recipe can be copied, saved, interrupted and nested; afterwards nothing is left on it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from pipelines.tiny import EDITING, TINIES, normal
from torch import Tensor, nn

from vis_accel import accelerate
from vis_accel.samplers.scheduler import SolverScheduler

DIT, SD = TINIES["DiTPipeline"], TINIES["StableDiffusionPipeline"]
IMG2IMG = EDITING["StableDiffusionImg2ImgPipeline"]


def state(pipe: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Every `__dict__` of the pipeline, its modules and its scheduler."""
    parts = [m for part in pipe.components.values() if isinstance(part, nn.Module) for m in part.modules()]
    return [(part, {k: dict(v) if isinstance(v, Mapping) else v for k, v in vars(part).items()}) for part in (pipe, pipe.scheduler, *parts)]


def assert_same_state(before: list[tuple[Any, dict[str, Any]]], after: list[tuple[Any, dict[str, Any]]]) -> None:
    assert len(before) == len(after)
    for (part, old), (same, new) in zip(before, after, strict=True):
        assert part is same
        assert list(old) == list(new)
        for key, value in old.items():
            assert value is new[key] or isinstance(value, (dict, int, float, bool, type(None))), key
            if isinstance(value, (dict, int, float)):
                assert value == new[key], key


@pytest.mark.parametrize("name", [*TINIES, *EDITING])
def test_nothing_is_left(name: str) -> None:
    pipe = (TINIES | EDITING)[name].build()
    before, config = state(pipe), dict(pipe.config)
    handle = accelerate(pipe, "dpmpp(steps=3)")
    assert isinstance(pipe.scheduler, SolverScheduler)
    assert dict(pipe.config) == config
    handle.suspend()
    assert_same_state(before, state(pipe))
    handle.resume()
    assert isinstance(pipe.scheduler, SolverScheduler)
    handle.remove()
    assert_same_state(before, state(pipe))
    assert dict(pipe.config) == config


def test_nothing_is_left_after_runs() -> None:
    for tiny, options in ((DIT, {}), (IMG2IMG, {"image": normal(9, 4, 8, 8, images=(0, 1), dtype=torch.float64), "strength": 0.5})):
        pipe = tiny.build()
        stock = tiny.call(pipe, **options)
        before = state(pipe)
        with accelerate(pipe, "euler"):
            tiny.call(pipe, **options)
        assert_same_state(before, state(pipe))
        assert torch.equal(tiny.call(pipe, **options), stock)


def interrupted(pipe: Any) -> None:
    def callback(pipe: Any, index: int, time: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if index == 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        SD.call(pipe, callback_on_step_end=callback)


@pytest.mark.parametrize("text", ["ddim(eta=1.0)", "heun", "unipc"])
def test_a_run_after_an_interrupted_one_is_right(text: str) -> None:
    pipe = SD.build()
    with accelerate(pipe, text):
        whole = SD.call(pipe)
        interrupted(pipe)
        assert torch.equal(SD.call(pipe), whole)


def test_copies_while_applied() -> None:
    pipe = SD.build()
    with accelerate(pipe, "unipc"):
        whole = SD.call(pipe)
        interrupted(pipe)
        for twin in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
            assert twin.scheduler is not pipe.scheduler
            assert twin.scheduler.pipeline is twin
            assert torch.equal(SD.call(twin), whole)
        assert copy.deepcopy(pipe.scheduler).pipeline is pipe  # a scheduler's copy does not copy the networks
        assert torch.equal(SD.call(pipe), whole)


def test_a_copy_starts_its_own_image_to_image_runs() -> None:
    options = {"image": normal(9, 4, 8, 8, images=(0, 1), dtype=torch.float64), "strength": 0.5}
    pipe = IMG2IMG.build()
    with accelerate(pipe, "heun"):
        whole = IMG2IMG.call(pipe, **options)
        twin = copy.deepcopy(pipe)
        planned = pipe.scheduler.timesteps
        IMG2IMG.call(twin, steps=6, **options)
        assert pipe.scheduler.timesteps is planned
        assert torch.equal(IMG2IMG.call(twin, **options), whole)


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.mark.parametrize("name", ["DDIMPipeline", "DiTPipeline", "FluxPipeline"])
def test_saved_while_applied_it_is_the_stock_pipeline(name: str, tmp_path: Path) -> None:
    tiny = TINIES[name]
    pipe = tiny.build(torch.float32)
    scheduler = pipe.scheduler
    stock = tiny.call(pipe)
    with accelerate(pipe, "dpmpp(steps=3)"):
        tiny.call(pipe)
        pipe.save_pretrained(tmp_path)
    absent = {part: None for part, value in pipe.components.items() if value is None}
    loaded = type(pipe).from_pretrained(tmp_path, **absent)
    loaded.set_progress_bar_config(disable=True)
    assert type(loaded.scheduler) is type(scheduler)
    assert public(loaded.scheduler.config) == public(scheduler.config)
    assert torch.equal(tiny.call(loaded), stock)


def test_the_config_is_the_sources() -> None:
    pipe = DIT.build()
    wanted = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    original = pipe.scheduler.config
    with accelerate(pipe, "heun"):
        assert pipe.scheduler.config is original
        found = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
        assert dict(found.config) == dict(wanted.config)
        assert "DDIMScheduler" in repr(pipe)


@pytest.mark.parametrize("name", ["DiTPipeline", "StableDiffusion3Pipeline", "FluxPipeline"])
def test_recipes_nest(name: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build()
    with accelerate(pipe, "euler"):
        outer = tiny.call(pipe)
    with accelerate(pipe, "dpmpp(steps=3)"):
        inner = tiny.call(pipe)
    with accelerate(pipe, "euler"):
        with accelerate(pipe, "dpmpp(steps=3)"):
            assert torch.equal(tiny.call(pipe), inner)
        assert torch.equal(tiny.call(pipe), outer)


def test_the_parts_of_an_accelerated_pipeline_make_another() -> None:
    """`from_pipe` is how people get an image-to-image pipeline; the stand-in goes along, without its pipeline's own method."""
    pipe = SD.build()
    with accelerate(pipe, "dpmpp"):
        other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
        other.set_progress_bar_config(disable=True)
        options = {"image": normal(9, 4, 8, 8, images=(0, 1), dtype=torch.float64), "strength": 0.5}
        found = IMG2IMG.call(other, **options)
    with accelerate(IMG2IMG.build(), "dpmpp") as handle:
        handle.target.register_modules(unet=pipe.unet)
        torch.testing.assert_close(IMG2IMG.call(handle.target, **options), found)
