"""The clock: under a stock scheduler and under ours it says which call this is, and a new run has a new memory."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from pipelines.tiny import EDITING, TINIES

from vis_accel import UsageError
from vis_accel.apply import accelerate
from vis_accel.clock import Clock, Moment
from vis_accel.handle import Handle
from vis_accel.pipelines import view


def watched(pipe: Any) -> tuple[Handle, Clock, list[Moment]]:
    """A handle under which every call of the denoiser writes down the moment it sees."""
    seen = view(pipe)
    clock, moments = Clock(pipe, lambda: seen.noise), list[Moment]()
    with Handle.building(pipe, "watched") as handle:
        clock.watch(handle)
        handle.add_hook(lambda: seen.denoiser.register_forward_pre_hook(lambda *_: moments.append(clock.now())))
    return handle, clock, moments


def run(pipe: Any, steps: int = 4) -> None:
    pipe([1, 2], num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="pt")


@pytest.fixture
def pipe() -> Any:
    return TINIES["DiTPipeline"].build(torch.float32)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_a_stock_scheduler_is_observed(pipe: Any, kind: str) -> None:
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    before = {key: id(value) for key, value in vars(pipe.scheduler).items()}
    handle, _, moments = watched(pipe)
    run(pipe)
    count = len(pipe.scheduler.timesteps)
    assert [moment.index for moment in moments] == list(range(count))
    noise = view(pipe).noise
    assert [moment.sigma for moment in moments] == [noise.sigma_at(float(t)) for t in pipe.scheduler.timesteps]
    ours, theirs = (inspect.signature(one.step).parameters for one in (pipe.scheduler, type(pipe.scheduler)))
    assert ["self", *ours] == list(theirs)  # pipelines look whether a scheduler takes a generator, an eta
    handle.remove()
    assert set(before) <= set(vars(pipe.scheduler))
    assert "step" not in vars(pipe.scheduler)
    assert "set_timesteps" not in vars(pipe.scheduler)


@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_image_to_image_begins_where_its_times_do(kind: str) -> None:
    """Some stock schedulers are told where a run begins, some are not."""
    tiny = EDITING["StableDiffusionImg2ImgPipeline"]
    pipe = tiny.build(torch.float32)
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    times: list[float] = []
    hook = pipe.unet.register_forward_pre_hook(lambda module, args: times.append(float(args[1])))
    handle, _, moments = watched(pipe)
    image = torch.zeros(2, 4, 8, 8)
    tiny.call(pipe, image=image, strength=0.5, steps=8)
    noise, count = view(pipe).noise, len(pipe.scheduler.timesteps)
    assert 4 <= len(moments) < count
    assert [moment.index for moment in moments] == list(range(count - len(moments), count))
    assert [moment.sigma for moment in moments] == [noise.sigma_at(time) for time in times]
    hook.remove()
    handle.remove()
    assert "get_timesteps" not in vars(pipe)


@pytest.mark.parametrize("recipe", ["euler(steps=3)", "heun(steps=3)", "pndm(steps=5)"])
def test_our_scheduler_keeps_its_own_position(pipe: Any, recipe: str) -> None:
    handle, _, moments = watched(pipe)
    with accelerate(pipe, recipe):
        run(pipe)
        requests = pipe.scheduler.requests
        run(pipe)
    handle.remove()
    assert [moment.index for moment in moments] == 2 * list(range(len(requests)))
    assert [moment.sigma for moment in moments] == 2 * list(requests)
    assert {moment.calls for moment in moments} == {len(requests)}


@pytest.mark.parametrize("recipe", [None, "euler(steps=4)"])
def test_an_aborted_run_leaves_no_memory(pipe: Any, recipe: str | None) -> None:
    handle, clock, moments = watched(pipe)
    above = accelerate(pipe, recipe) if recipe else None
    calls = 0

    def abort(*_: object) -> None:
        nonlocal calls
        calls += 1
        moments[-1].remember("mine", list).append(calls)
        if calls == 2:
            raise KeyboardInterrupt

    hook = pipe.transformer.register_forward_pre_hook(abort)
    with pytest.raises(KeyboardInterrupt):
        run(pipe)
    assert moments[-1].remember("mine", list) == [1, 2]
    run(pipe)
    hook.remove()
    assert moments[-1].index == 3
    assert moments[-1].remember("mine", list) == [3, 4, 5, 6]
    clock.forget()
    for one in (above, handle):
        if one is not None:
            one.remove()


def test_outside_a_run_there_is_no_moment(pipe: Any) -> None:
    handle, clock, _ = watched(pipe)
    with pytest.raises(UsageError, match="outside a run"):
        clock.now()
    run(pipe)
    with pytest.raises(UsageError, match="outside a run"):
        clock.now()
    handle.remove()


def test_a_scheduler_replaced_later_is_an_error(pipe: Any) -> None:
    handle, _, _ = watched(pipe)
    old, pipe.scheduler = pipe.scheduler, diffusers.DDPMScheduler()
    with pytest.raises(UsageError, match="was replaced by DDPMScheduler"):
        run(pipe)
    pipe.scheduler = old
    handle.remove()


def test_a_watch_that_ended_is_renewed(pipe: Any) -> None:
    """A method that watches for its calibration only, and then for good: found when q-diffusion met no run of a stock scheduler."""
    seen = view(pipe)
    clock, indices = Clock(pipe, lambda: seen.noise), list[int]()
    for _ in range(2):
        with Handle.building(pipe, "watching") as handle:
            clock.watch(handle)
            clock.watch(handle)  # the second method of a recipe
            handle.add_hook(lambda: seen.denoiser.register_forward_pre_hook(lambda *_: indices.append(clock.now().index)))
        run(pipe)
        handle.remove()
    assert indices == 2 * [0, 1, 2, 3]
