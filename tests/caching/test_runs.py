"""Caches in runs: stock schedulers and ours, halves and batches, runs that stop half-way, what is refused."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from caching.deeper import Watched, deeper, latents
from pipelines.tiny import Tiny

from vis_accel import ConflictError, NoEffectError, UsageError, accelerate
from vis_accel.caching.taylor import Taylor
from vis_accel.contenders import Stage
from vis_accel.generation import Job
from vis_accel.recipe import Recipe
from vis_accel.rows import count, notes

CASES = [("DDIMPipeline", "deepcache"), ("FluxPipeline", "taylor"), ("DiTPipeline", "firstblock(threshold=0.9)")]


@pytest.mark.parametrize("sampler", ["ddim(steps=11)", "dpm(steps=11, order=2)", "heun(steps=6)"])
def test_with_our_samplers(sampler: str) -> None:
    """Heun makes 11 calls in 6 steps; each counts, also the second at a time."""
    pipe = deeper("DDIMPipeline")
    with accelerate(pipe, f"deepcache + {sampler}") as handle, Watched(pipe) as watched:
        latents(pipe)
        assert handle.report() == {"calls reused": 6, "calls in full": 5}
    assert [i for i, full in enumerate(watched.full) if full] == [0, 3, 6, 9, 10]


@pytest.mark.parametrize("kind", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_with_stock_schedulers(kind: str) -> None:
    pipe = deeper("StableDiffusionPipeline", torch.float32)
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
    before = latents(pipe, steps=10)
    with accelerate(pipe, "deepcache(interval=2)") as handle, Watched(pipe) as watched:
        assert latents(pipe, steps=10).isfinite().all()
        calls = len(pipe.scheduler.timesteps)
        assert watched.full == [i % 2 == 0 or i >= calls - 2 for i in range(calls)]
        assert sum(handle.report().values()) == calls
    assert torch.equal(latents(pipe, steps=10), before)


@pytest.mark.parametrize(("name", "cache"), CASES)
def test_two_batch_sizes_in_a_row_and_twice_the_same(name: str, cache: str) -> None:
    pipe = deeper(name)
    with accelerate(pipe, f"{cache} + {'euler' if name.startswith('Flux') else 'ddim'}(steps=10)"):
        one = latents(pipe, images=(0,))
        three = latents(pipe, images=(0, 1, 2))
        assert torch.equal(latents(pipe, images=(0,)), one)
        assert torch.equal(latents(pipe, images=(0, 1, 2)), three)
        if not cache.startswith("firstblock"):  # whose decision is the batch's
            torch.testing.assert_close(three[:1], one, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "cache"), CASES)
def test_a_run_that_stopped_leaves_nothing_for_the_next(name: str, cache: str) -> None:
    pipe = deeper(name)
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt

    with accelerate(pipe, cache):
        clean = latents(pipe, images=(1,))
        network = Tiny.denoiser(pipe)
        for part in (network, network.conv_in if hasattr(network, "conv_in") else network.norm_out):  # before the call, and within it
            calls, hook = 0, part.register_forward_pre_hook(fail)
            with pytest.raises(KeyboardInterrupt):
                latents(pipe, images=(0,))
            hook.remove()
            assert torch.equal(latents(pipe, images=(1,)), clean)


def test_halves_called_one_after_another_have_pasts_of_their_own() -> None:
    """Flux calls its network for the conditional half, then for the other: each is served what it made itself, a step ago."""
    pipe = deeper("FluxPipeline")
    made: list[Any] = []
    served: list[tuple[Any, Any]] = []
    serve = Taylor.serve

    def note(self: Taylor, moment: Any, past: Any) -> Any:
        found = serve(self, moment, past)
        if found is not None:
            served.append((past, past.nodes[-1].made[0]))
        return found

    with pytest.MonkeyPatch.context() as patch, accelerate(pipe, "taylor(order=0, full=(1,)) + euler(steps=8)"):
        patch.setattr(Taylor, "serve", note)
        hook = pipe.transformer.transformer_blocks[0].attn.register_forward_hook(lambda module, args, output: made.append(output))
        latents(pipe, steps=8)
        hook.remove()
    conditional, other = made[2], made[3]  # of the second moment, the first that is remembered: the one before is infinitely noisy
    assert not torch.equal(conditional[0], other[0])
    assert len(served) == 8
    assert all(what is (conditional, other)[i % 2] for i, (_, what) in enumerate(served))


def test_another_batch_in_the_middle_of_a_run_begins_anew() -> None:
    """A guidance that ends half-way halves the batch: what was kept of both halves does not fit the one."""
    pipe = deeper("StableDiffusionPipeline")
    calls = 0

    def halve(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        nonlocal calls
        calls += 1
        if calls > 5:
            return (args[0][:2], *args[1:]), kwargs | {"encoder_hidden_states": kwargs["encoder_hidden_states"][:2]}
        return None

    def double(module: Any, args: Any, output: Any) -> Any:
        return tuple(torch.cat([part, part]) for part in output) if len(output[0]) == 2 else None

    with accelerate(pipe, "deepcache + ddim(steps=12)"), Watched(pipe) as watched:
        hooks = [pipe.unet.register_forward_pre_hook(halve, with_kwargs=True, prepend=True), pipe.unet.register_forward_hook(double)]
        assert latents(pipe).isfinite().all()
        for hook in hooks:
            hook.remove()
    assert [i for i, full in enumerate(watched.full) if full] == [0, 3, 5, 8, 10, 11]


def test_where_the_noise_rises_a_cache_begins_anew() -> None:
    pipe = deeper("DDIMPipeline")
    with accelerate(pipe, "deepcache(interval=50) + restart(steps=4, times=1)"), Watched(pipe) as watched:
        latents(pipe)
        levels = pipe.scheduler.requests
    rises = [i for i in range(1, len(levels)) if levels[i] > levels[i - 1]]
    assert rises
    assert [i for i, full in enumerate(watched.full) if full] == [0, *rises, len(levels) - 2, len(levels) - 1]


def test_what_is_kept_is_let_go_at_the_end_of_a_run() -> None:
    pipe = deeper("DDIMPipeline")
    kept: list[Any] = []
    from vis_accel.caching import calls

    class Noted(calls.Node):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            import weakref

            kept.append(weakref.ref(self.made[0]))

    with pytest.MonkeyPatch.context() as patch, accelerate(pipe, "deepcache + ddim(steps=9)"):
        patch.setattr(calls, "Node", Noted)
        latents(pipe)
        assert kept
        assert all(reference() is None for reference in kept)


@pytest.mark.parametrize("recipe", ["deepcache + ddim(steps=7)", "deepcache + heun(steps=4)", "deepcache(interval=1) + ddim(steps=7)"])
def test_short_runs_are_refused(recipe: str) -> None:
    pipe = deeper("DDIMPipeline")
    with accelerate(pipe, recipe), pytest.raises(UsageError, match="at least 8 calls, and this one has 7"):
        latents(pipe)


@pytest.mark.parametrize("sampler", ["dpm(order=3)", "deis", "ipndm", "unipc(order=3)"])
def test_solvers_of_high_order_are_refused(sampler: str) -> None:
    with pytest.raises(ConflictError, match="extrapolates the errors of reused outputs"):
        accelerate(deeper("DDIMPipeline"), f"deepcache + {sampler}")


def test_a_stock_solver_of_high_order_is_refused() -> None:
    pipe = deeper("DiTPipeline")
    pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(pipe.scheduler.config, solver_order=3)
    with pytest.raises(ConflictError, match="a solver of order 3"):
        accelerate(pipe, "taylor")


@pytest.mark.parametrize("name", ["down_block_additional_residuals", "mid_block_additional_residual"])
def test_residuals_of_others_are_refused(name: str) -> None:
    pipe = deeper("StableDiffusionPipeline")

    def add(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        return args, kwargs | {name: torch.zeros(1)}

    with accelerate(pipe, "deepcache"):
        hook = pipe.unet.register_forward_pre_hook(add, with_kwargs=True, prepend=True)
        with pytest.raises(UsageError, match=name):
            latents(pipe)
        hook.remove()


def test_a_row_counts_its_work_and_what_never_hit_is_an_error() -> None:
    pipe, job = deeper("DiTPipeline", torch.float32), Job(class_labels=(1, 2), guidance_scale=2.0, steps=10)
    recipes = ["ddim(steps=10)", "taylor + ddim(steps=10)", "taylor(interval=1) + ddim(steps=10)"]
    stage = Stage(pipe, [Recipe.parse(text) for text in recipes], job)
    plain, cached, neutral = stage.candidates
    counted = [count(stage, one) for one in (stage.baselines[0], plain, cached)]
    assert counted[0] == counted[1]  # ten equal calls: counted one by one, and as ten times the first
    assert counted[2]["calls"] == 10
    assert counted[2]["GMACs"] < counted[1]["GMACs"]  # type: ignore[operator]
    assert notes(cached) == ("calls reused: 4", "calls in full: 6")
    assert notes(plain) == ()
    with pytest.raises(NoEffectError, match="all 10 calls were computed in full"):
        count(stage, neutral)
    stage.close()
