"""Every registered sampler and method of guidance, on a tiny DiT: taken off it leaves nothing, also when applying fails half-way."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, ClassVar

import diffusers
import pytest
import torch
from torch import Tensor, nn

from vis_accel import accelerate, registry
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch
from vis_accel.recipe import Recipe

SAMPLERS = [name for name, entry in registry.METHODS.items() if entry.family == "sampler"]
GUIDANCE = [name for name, entry in registry.METHODS.items() if entry.family == "guidance"]


@pytest.fixture(scope="module")
def template() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformer = diffusers.DiTTransformer2DModel(
            num_attention_heads=1, attention_head_dim=8, in_channels=4, out_channels=4, num_layers=1, sample_size=8, norm_num_groups=4
        )
        vae = diffusers.AutoencoderKL(latent_channels=4, norm_num_groups=4, block_out_channels=(8,))
    pipe: Any = diffusers.DiTPipeline(transformer.eval(), vae.eval(), diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(template: Any) -> Any:
    return copy.deepcopy(template)


def picture(pipe: Any) -> Tensor:
    found: Tensor = pipe([1, 2], num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt").images
    return found


def state(pipe: Any) -> list[tuple[int, list[tuple[str, int]], list[int]]]:
    """Names and identities of every attribute, and what hangs in each module's tables; a stock scheduler's times are new in every run."""
    modules = [m for part in pipe.components.values() if isinstance(part, nn.Module) for m in part.modules()]
    return [
        (
            id(part),
            [(k, id(v) if k != "timesteps" else 0) for k, v in vars(part).items()],
            [len(v) for v in vars(part).values() if isinstance(v, dict)],
        )
        for part in (pipe, pipe.scheduler, *modules)
    ]


@pytest.mark.parametrize("name", SAMPLERS)
def test_applied_and_removed(pipe: Any, name: str) -> None:
    stock, config = picture(pipe), dict(pipe.config)
    for _ in range(2):
        before = state(pipe)
        with accelerate(pipe, f"{name}(steps=2)"):
            assert state(pipe) != before
            assert not torch.equal(picture(pipe), stock)
        assert state(pipe) == before
        assert dict(pipe.config) == config
        assert torch.equal(picture(pipe), stock)


@pytest.mark.parametrize("sampler", ["", " + dpm(steps=3)"])
@pytest.mark.parametrize("name", GUIDANCE)
def test_guidance_applied_suspended_and_removed(pipe: Any, name: str, sampler: str) -> None:
    picture(pipe)
    with accelerate(pipe, "dpm(steps=3)" if sampler else "guidance-cutoff(share=1)"):
        plain = picture(pipe)
    for _ in range(2):
        before = state(pipe)
        handle = accelerate(pipe, name + sampler)
        assert state(pipe) != before
        changed = picture(pipe)
        assert not torch.equal(changed, plain)
        handle.suspend()
        assert state(pipe) == before
        handle.resume()
        assert torch.equal(picture(pipe), changed)
        handle.remove()
        assert state(pipe) == before


@dataclass(frozen=True, kw_only=True)
class Failing(Method):
    """Changes something, then fails."""

    name: ClassVar[str] = "failing"
    family: ClassVar[Family] = "compile"  # the last family: everything else is applied by then
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("forward", "wraps"),)

    def apply(self, target: Any, context: Context) -> Handle:
        with Handle.building(target, str(self)) as handle:
            handle.swap_forward(target.transformer, lambda *args, **kwargs: None)
            raise RuntimeError("half-way")
        return handle


@pytest.mark.parametrize("name", [*SAMPLERS, *GUIDANCE])
def test_failed_half_way(pipe: Any, name: str) -> None:
    stock, before = picture(pipe), state(pipe)
    sampler = registry.load(name)()
    with pytest.raises(RuntimeError, match="half-way"):
        accelerate(pipe, Recipe((sampler, Failing())))
    assert state(pipe) == before
    assert torch.equal(picture(pipe), stock)


@pytest.mark.parametrize("name", [*SAMPLERS, *GUIDANCE])
def test_failed_in_the_middle_of_a_run(pipe: Any, name: str) -> None:
    stock, before = picture(pipe), state(pipe)
    calls = 0

    def fail(module: nn.Module, inputs: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of memory")

    hook = pipe.transformer.register_forward_pre_hook(fail)
    with accelerate(pipe, name), pytest.raises(RuntimeError, match="out of memory"):
        picture(pipe)
    hook.remove()
    assert state(pipe) == before
    assert torch.equal(picture(pipe), stock)
