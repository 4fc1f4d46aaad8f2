"""Guidance on tiny pipelines: what is evaluated is what the rule says, in every pipeline that stacks two halves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pipelines.tiny import EDITING, TINIES, Tiny, normal
from torch import Tensor

from vis_accel import ConflictError, NotApplicableError, UsageError, accelerate
from vis_accel.eval.counters import CallCounter
from vis_accel.guidance.cutoff import guided_calls
from vis_accel.pipelines import view
from vis_accel.recipe import Recipe
from vis_accel.samplers import NoiseModel, sample

GUIDED = [name for name, tiny in TINIES.items() if tiny.guidance_name and name not in ("PixArtSigmaPipeline", "FluxPipeline")]
ALL = "guidance-window(lo=0, hi=None)"
NONE = "guidance-window(lo=2000000, hi=None)"  # above the cap of an infinite sigma
Rule = Callable[[int, float], bool]  # (call, sigma) -> guided


def by_hand(tiny: Tiny, pipe: Any, guided: Rule, solver: str) -> Tensor:
    """The pull form over two networks, one guided and one not: no pipeline, no hooks."""
    noise: NoiseModel = view(pipe).noise
    (method,) = Recipe.parse(solver).methods
    with accelerate(pipe, solver):
        tiny.call(pipe, guidance=tiny.guided)
        knots = pipe.scheduler.knots
    plain, full = (noise.denoiser(tiny.network(pipe, (0, 1), guidance)) for guidance in (1.0, tiny.guided))
    calls = 0

    def denoise(x: Tensor, sigma: float) -> Any:
        nonlocal calls
        calls += 1
        return (full if guided(calls - 1, sigma) else plain)(x, sigma)

    with torch.no_grad():
        return sample(denoise, method, tiny.start((0, 1)) / noise.alpha(knots[0]), knots)  # type: ignore[arg-type]


def near(found: Tensor, wanted: Tensor) -> bool:
    return bool(found.isfinite().all()) and float((found - wanted).abs().max()) <= 1e-5 * max(1.0, float(wanted.abs().max()))


def middle(pipe: Any, tiny: Tiny) -> tuple[float, float]:
    """A window around the second and third of the four calls of dpm."""
    with accelerate(pipe, "dpm"):
        tiny.call(pipe)
        levels = pipe.scheduler.requests
    return (levels[2] + levels[3]) / 2, (levels[0] + levels[1]) / 2


@pytest.mark.parametrize("name", GUIDED)
def test_a_window_is_the_guided_network_inside_and_the_conditional_one_outside(name: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build()
    lo, hi = middle(pipe, tiny)
    window = f"guidance-window(lo={lo}, hi={hi}, restart=False)"
    with accelerate(pipe, f"{window} + dpm"), CallCounter(tiny.denoiser(pipe)) as counter:
        found = tiny.call(pipe, guidance=tiny.guided)
    assert near(found, by_hand(tiny, pipe, lambda call, sigma: lo < sigma <= hi, "dpm"))
    assert not near(found, by_hand(tiny, pipe, lambda call, sigma: True, "dpm"))
    assert not near(found, by_hand(tiny, pipe, lambda call, sigma: False, "dpm"))
    assert (counter.calls, counter.rows) == (4, 2 + 4 + 4 + 2)


@pytest.mark.parametrize("sampler", ["", " + dpm"])
@pytest.mark.parametrize("name", GUIDED)
def test_the_ends_of_the_scale_are_bit_for_bit_the_guided_and_the_conditional_pipeline(name: str, sampler: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build(torch.float32)
    before = accelerate(pipe, sampler.removeprefix(" + ")) if sampler else None
    plain, guided = tiny.call(pipe), tiny.call(pipe, guidance=tiny.guided)
    assert not torch.equal(plain, guided)
    if before is not None:
        before.remove()
    for recipe in (ALL, "guidance-cutoff(share=1)", "guidance-reuse(every=1)"):
        with accelerate(pipe, recipe + sampler) as handle:
            assert torch.equal(tiny.call(pipe, guidance=tiny.guided), guided)
            assert "no effect" in handle.report()
    with accelerate(pipe, NONE + sampler) as handle:
        assert torch.equal(tiny.call(pipe, guidance=tiny.guided), plain)
        assert handle.report() == {"guidance-window": "4 of 4 calls without the unconditional half"}


@pytest.mark.parametrize("recipe", [ALL, NONE, "guidance-cutoff", "guidance-reuse"])
@pytest.mark.parametrize("name", GUIDED)
def test_with_guidance_off_nothing_is_mistaken_for_a_half(name: str, recipe: str) -> None:
    """Equal noise, two conditions: rows that look like two halves and are none."""
    tiny = TINIES[name]
    pipe = tiny.build(torch.float32)
    noise = tiny.start((0,), torch.float32).expand(2, -1, -1, -1).clone()

    def call() -> Tensor:
        if name.startswith("DiT"):
            return tiny.call(pipe, generator=[torch.Generator().manual_seed(5) for _ in range(2)])
        return tiny.call(pipe, latents=noise)

    wanted = call()
    with accelerate(pipe, recipe) as handle:
        assert torch.equal(call(), wanted)
        assert "not guided" in handle.report()["no effect"]


def test_the_null_class_asked_for_by_hand_is_no_half() -> None:
    tiny = TINIES["DiTPipeline"]
    pipe = tiny.build(torch.float32)
    wanted = tiny.call(pipe, class_labels=[3, 1000])
    with accelerate(pipe, NONE):
        assert torch.equal(tiny.call(pipe, class_labels=[3, 1000]), wanted)


@pytest.mark.parametrize("name", GUIDED)
def test_an_image_does_not_depend_on_its_batch(name: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build()
    lo, hi = middle(pipe, tiny)
    for recipe in (f"guidance-window(lo={lo}, hi={hi})", "guidance-reuse"):
        with accelerate(pipe, f"{recipe} + dpm"):
            batch = tiny.call(pipe, images=(0, 1, 2), guidance=tiny.guided)
            for image in range(3):
                assert near(batch[image : image + 1], tiny.call(pipe, images=(image,), guidance=tiny.guided))


@pytest.mark.parametrize("name", GUIDED)
def test_reuse_keeps_the_difference_of_the_last_call_that_had_both(name: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build()
    network = tiny.denoiser(pipe)
    stock, calls, kept = network.forward, 0, torch.empty(0)

    def forward(*args: Any, **kwargs: Any) -> Any:
        """Always both halves; in two calls of three the unconditional one is overwritten."""
        nonlocal calls, kept
        output = stock(*args, **kwargs)
        answer = output[0] if isinstance(output, tuple) else output.sample
        first, second = answer.chunk(2)
        conditional, other = (first, second) if name.startswith("DiT") else (second, first)
        if calls % 3 == 0:
            kept = conditional - other
        else:
            other.copy_(conditional - kept)
        calls += 1
        return output

    vars(network)["forward"] = forward
    wanted = tiny.call(pipe, guidance=tiny.guided)
    del vars(network)["forward"]
    with accelerate(pipe, "guidance-reuse(every=3)"), CallCounter(network) as counter:
        for _ in range(2):  # a second run starts afresh
            assert near(tiny.call(pipe, guidance=tiny.guided), wanted)
    assert counter.rows == 2 * (4 + 2 + 2 + 4)
    assert not near(tiny.call(pipe, guidance=tiny.guided), wanted)


def test_a_cutoff_is_the_window_at_its_noise_level() -> None:
    tiny = TINIES["DiTPipeline"]
    pipe = tiny.build(torch.float32)
    with accelerate(pipe, "guidance-cutoff(share=0.5) + dpm") as handle:
        cut = tiny.call(pipe, guidance=3.0)
        levels = pipe.scheduler.requests
        assert handle.report()["guidance-cutoff"] == "2 of 4 calls without the unconditional half"
    with accelerate(pipe, f"guidance-window(lo={levels[2]}, hi=None) + dpm"):
        assert torch.equal(tiny.call(pipe, guidance=3.0), cut)


def test_a_share_of_calls_is_rounded_up_but_not_by_the_product() -> None:
    assert [guided_calls(share, 10) for share in (0.01, 0.3, 0.31, 0.7, 1.0)] == [1, 3, 4, 7, 10]
    assert guided_calls(0.1, 3) == 1
    assert [guided_calls(k / 90, 90) for k in range(1, 91)] == list(range(1, 91))


def test_rows_are_counted_whichever_came_first() -> None:
    tiny = TINIES["StableDiffusionPipeline"]
    pipe = tiny.build(torch.float32)
    with CallCounter(pipe.unet) as outer, accelerate(pipe, NONE), CallCounter(pipe.unet) as inner:
        tiny.call(pipe, guidance=3.0)
    assert (outer.calls, outer.rows) == (inner.calls, inner.rows) == (4, 8)


@pytest.mark.parametrize("sampler", ["", " + dpm"])
def test_image_to_image(sampler: str) -> None:
    tiny = EDITING["StableDiffusionImg2ImgPipeline"]
    pipe = tiny.build(torch.float32)
    options = {"image": normal(9, 4, 8, 8, images=(0, 1), dtype=torch.float32), "strength": 0.5, "steps": 8}
    with accelerate(pipe, f"{ALL}{sampler}"):
        guided = tiny.call(pipe, guidance=3.0, **options)
    with accelerate(pipe, f"{NONE}{sampler}"):
        assert not torch.equal(tiny.call(pipe, guidance=3.0, **options), guided)
        assert torch.equal(tiny.call(pipe, guidance=3.0, **options), tiny.call(pipe, guidance=1.0, **options))
    with accelerate(pipe, f"guidance-cutoff(share=0.5){sampler}") as handle:
        tiny.call(pipe, guidance=3.0, **options)
        assert handle.report()["guidance-cutoff"] == "2 of 4 calls without the unconditional half"  # of those that are made
    with accelerate(pipe, f"guidance-reuse(every=4){sampler}") as handle:
        tiny.call(pipe, guidance=3.0, **options)
        assert handle.report()["guidance-reuse"] == "3 of 4 calls without the unconditional half"


def test_an_interrupted_run_leaves_nothing_for_the_next() -> None:
    tiny = TINIES["StableDiffusionPipeline"]
    pipe = tiny.build(torch.float32)

    def stop(pipe: Any, index: int, time: Any, tensors: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    with accelerate(pipe, "guidance-reuse(every=4)"):
        whole = tiny.call(pipe, guidance=3.0)
        with pytest.raises(KeyboardInterrupt):
            tiny.call(pipe, images=(2, 1), guidance=3.0, callback_on_step_end=stop)
        assert torch.equal(tiny.call(pipe, guidance=3.0), whole)


@pytest.mark.parametrize("sampler", ["", " + dpm"])
@pytest.mark.parametrize("name", ["DiTPipeline", "StableDiffusionPipeline"])
def test_a_copy_of_the_pipeline_runs_by_itself(name: str, sampler: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build(torch.float32)
    with accelerate(pipe, f"guidance-cutoff{sampler}") as handle:
        whole = tiny.call(pipe, guidance=3.0)
        twin, report = copy.deepcopy(pipe), handle.report()
        tiny.call(twin, images=(0, 1, 2), guidance=3.0)
        assert torch.equal(tiny.call(twin, guidance=3.0), whole)
        assert handle.report() == report
        assert torch.equal(tiny.call(pipe, guidance=3.0), whole)


@pytest.mark.parametrize("method", ["guidance-window", "guidance-cutoff", "guidance-reuse"])
def test_pipelines_without_two_halves_are_refused_with_the_reason(method: str) -> None:
    for name, reason in (
        ("DDPMPipeline", "no call of it stacks"),
        ("FluxPipeline", "no call of it stacks"),
        ("PixArtSigmaPipeline", "not known"),
    ):
        with pytest.raises(NotApplicableError, match=reason) as caught:
            accelerate(TINIES[name].build(), method)
        assert caught.value.hint is not None
        assert "DiTPipeline" in caught.value.hint
    with pytest.raises(NotApplicableError, match="guided diffusion pipelines"):
        Recipe.parse(method).methods[0].check_target(object())


def test_two_of_them_exclude_each_other_and_the_window_has_a_width() -> None:
    with pytest.raises(ConflictError, match="both replace the unconditional half"):
        Recipe.parse("guidance-window + guidance-reuse")
    with pytest.raises(ConflictError, match="both replace the unconditional half"):
        Recipe.parse("guidance-cutoff + guidance-window")
    for text in ("guidance-window(lo=5.0)", "guidance-window(lo=2, hi=1)", "guidance-window(lo=-1)", "guidance-cutoff(share=0)"):
        with pytest.raises(UsageError, match="must be"):
            Recipe.parse(text)
    assert len(Recipe.parse("compile + guidance-window + dpm(steps=4)")) == 3  # graphs lie inside the hooks
