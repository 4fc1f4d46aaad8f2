"""Students on a pipeline: rows that are saved, guidance that must match, steps that must fit, and nothing left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from students.conftest import GUIDANCE, tiny_ddpm, tiny_dit
from torch import Tensor, nn

from vis_accel import accelerate, addons
from vis_accel.distillation.consistency import grid_times
from vis_accel.distillation.guidance import ScaleEmbedding
from vis_accel.errors import ConflictError, DataError, NotApplicableError, UsageError
from vis_accel.eval.counters import CallCounter, macs
from vis_accel.samplers.noise import NoiseModel
from vis_accel.students.scaled import PREFIX


@pytest.fixture
def pipe() -> Any:
    return tiny_dit()


def tuned(network: nn.Module) -> dict[str, Tensor]:
    """Every matrix of the blocks a little different."""
    generator = torch.Generator().manual_seed(9)
    kinds = {name: value for name, value in network.state_dict().items() if value.ndim == 2 and "embedding_table" not in name}
    return {name: value + 0.05 * value.std() * torch.randn(value.shape, generator=generator) for name, value in kinds.items()}


def write(path: Path, pipe: Any, method: str, facts: dict[str, Any], extra: dict[str, Tensor] | None = None) -> str:
    network = pipe.transformer if hasattr(pipe, "transformer") else pipe.unet
    addons.save(path, addons.differences(network, tuned(network)) | (extra or {}), method=method, model=network, facts=facts)
    return str(path)


@pytest.fixture
def consistency(pipe: Any, tmp_path: Path) -> str:
    facts = {"student": "consistency", "knots": 25, "guidance": GUIDANCE, "boundary": "lcm"}
    return write(tmp_path / "consistency.safetensors", pipe, "distilled", facts)


@pytest.fixture
def guidance(pipe: Any, tmp_path: Path) -> str:
    torch.manual_seed(0)
    embedding = ScaleEmbedding(2, 16)
    nn.init.normal_(embedding.last.weight, std=0.2)
    extra = {f"{PREFIX}{name}": value for name, value in embedding.state_dict().items()}
    facts = {"low": 1.5, "high": 6.0, "guidance": GUIDANCE}
    return write(tmp_path / "guidance.safetensors", pipe, "guidance-distilled", facts, extra)


def images(pipe: Any, guidance: float = GUIDANCE, steps: int = 3) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    found: Tensor = pipe([1, 7], guidance_scale=guidance, num_inference_steps=steps, generator=generators, output_type="pt").images
    return found


def state(pipe: Any) -> list[Any]:
    modules = [module for part in pipe.components.values() if isinstance(part, nn.Module) for module in part.modules()]
    tables = [(id(part), sorted((key, id(value)) for key, value in vars(part).items())) for part in (pipe, *modules)]
    tables.append((id(pipe.scheduler), [(key, 0) for key in sorted(vars(pipe.scheduler))]))  # its own runs change its values
    hooks = [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in modules]
    return [
        tables,
        hooks,
        [(id(value), value._version) for module in modules for value in module._parameters.values() if value is not None],
    ]


@pytest.mark.parametrize("kind", ["consistency", "guidance", "guidance + dpm"])
def test_one_row_an_image_and_nothing_left(kind: str, pipe: Any, consistency: str, guidance: str) -> None:
    recipe = f"distilled(steps=3, weights='{consistency}')" if kind == "consistency" else f"guidance-distilled(weights='{guidance}')"
    recipe += " + dpm(steps=3)" if kind.endswith("dpm") else ""
    plain, before = images(pipe), state(pipe)
    with CallCounter(pipe.transformer) as counter:
        images(pipe)
    assert (counter.calls, counter.rows) == (3, 12)
    handle = accelerate(pipe, recipe)
    with CallCounter(pipe.transformer) as counter:
        first = images(pipe)
    assert (counter.calls, counter.rows) == (3, 6)  # two images
    assert not torch.allclose(first, plain, atol=1e-3)
    assert torch.equal(images(pipe), first)  # noise of later steps is the latents' own
    assert "step" not in vars(pipe.scheduler) or kind == "guidance"  # there the clock observes the stock scheduler
    handle.suspend()
    assert torch.equal(images(pipe), plain)
    handle.resume()
    assert torch.equal(images(pipe), first)
    handle.remove()
    assert state(pipe) == before
    assert torch.equal(images(pipe), plain)


@pytest.mark.parametrize("kind", ["distilled", "guidance-distilled"])
def test_the_calls_guidance_must_be_the_students(kind: str, pipe: Any, consistency: str, guidance: str) -> None:
    weights = consistency if kind == "distilled" else guidance
    with accelerate(pipe, f"{kind}(weights='{weights}')"):
        for other in (2.5, 1.5, 7.0):
            with pytest.raises(UsageError, match=rf"guidance_scale={other:g}, and .* has 3 in its weights"):
                images(pipe, other)
        with pytest.raises(UsageError, match="asks for no guidance"):
            images(pipe, 1.0)
        assert images(pipe).isfinite().all()  # what was refused leaves no trace
    assert "step" not in vars(pipe.scheduler)


def test_a_run_that_breaks_off_in_its_first_call_leaves_no_step(pipe: Any, consistency: str) -> None:
    before, plain = state(pipe), images(pipe)
    handle = accelerate(pipe, f"distilled(weights='{consistency}')")

    class Stop(Exception):
        pass

    def stop(*args: Any) -> None:
        raise Stop

    hook = pipe.transformer.register_forward_hook(stop)  # after the student's own, which has put its `step`
    with pytest.raises(Stop):
        images(pipe)
    hook.remove()
    handle.remove()
    assert state(pipe) == before
    assert torch.equal(images(pipe), plain)


def test_the_pipelines_arithmetic_gives_the_students_answer_back(pipe: Any, guidance: str) -> None:
    """The same weights in a stock pipeline without guidance: the same images."""
    with accelerate(pipe, f"guidance-distilled(scale=4.5, weights='{guidance}')"):
        ours = images(pipe, 4.5)
        stock = tiny_dit()
        stock.transformer.load_state_dict(pipe.transformer.state_dict())
    assert torch.equal(ours, images(stock, 1.0))
    with accelerate(pipe, f"guidance-distilled(scale=2, weights='{guidance}')"):
        assert not torch.allclose(images(pipe, 2.0), ours, atol=1e-3)


def test_a_call_of_the_network_outside_a_run_is_left_alone(pipe: Any, consistency: str) -> None:
    x, times, labels = torch.randn(3, 4, 4, 4), torch.tensor([5, 5, 5]), torch.tensor([1, 2, 3])
    with accelerate(pipe, f"distilled(steps=1, weights='{consistency}')"):
        images(pipe, steps=1)
        assert pipe.transformer(x, timestep=times, class_labels=labels).sample.shape == x.shape
        assert macs(pipe.transformer, x, timestep=times, class_labels=labels) > 0


def test_steps_go_by_the_multistep_rule(pipe: Any, consistency: str) -> None:
    for steps in (1, 2, 4, 25):
        with accelerate(pipe, f"distilled(steps={steps}, weights='{consistency}')"):
            pipe.scheduler.set_timesteps(50)
            assert len(pipe.scheduler.timesteps) == steps
            assert set(pipe.scheduler.timesteps.round().long().tolist()) <= set(grid_times(25, 1000))
    with pytest.raises(UsageError, match=r"steps=26.*must be 1 \.\. 25"):
        accelerate(pipe, f"distilled(steps=26, weights='{consistency}')")


def test_without_fresh_noise_a_run_is_a_function_of_its_start(pipe: Any, consistency: str) -> None:
    made = {}
    for fresh in (0.0, 0.5, 1.0):
        with accelerate(pipe, f"distilled(steps=3, fresh={fresh}, weights='{consistency}')"):
            assert pipe.scheduler.solver.fresh == fresh
            made[fresh] = images(pipe)
    assert not torch.allclose(made[0.0], made[1.0], atol=1e-3)
    assert not torch.allclose(made[0.5], made[1.0], atol=1e-3)


def test_a_student_of_fixed_steps_takes_no_other(pipe: Any, tmp_path: Path) -> None:
    facts = {"student": "progressive", "steps": 2, "guidance": None, "prediction": "v_prediction"}
    path = write(tmp_path / "p.safetensors", pipe, "distilled", facts)
    with accelerate(pipe, f"distilled(steps=2, weights='{path}')"), CallCounter(pipe.transformer) as counter:
        images(pipe)
    assert (counter.calls, counter.rows) == (2, 8)  # guidance is outside this one
    with pytest.raises(UsageError, match=r"steps=4.*must be 2, which the student p was trained for"):
        accelerate(pipe, f"distilled(weights='{path}')")
    with pytest.raises(UsageError, match=r"fresh=0\.5.*belongs to consistency students"):
        accelerate(pipe, f"distilled(steps=2, fresh=0.5, weights='{path}')")


def test_a_student_that_predicts_v_on_a_network_that_predicts_noise(tmp_path: Path) -> None:
    pipe = tiny_dit("epsilon")
    facts = {"student": "progressive", "steps": 2, "guidance": GUIDANCE, "prediction": "v_prediction"}
    path = write(tmp_path / "p.safetensors", pipe, "distilled", facts)
    with accelerate(pipe, f"distilled(steps=2, weights='{path}')"):
        ours = images(pipe)
        stock = tiny_dit("v_prediction")
        stock.transformer.load_state_dict(pipe.transformer.state_dict())
    assert torch.allclose(ours, images(stock, 1.0, steps=2), atol=1e-4)


def test_on_pixels_the_function_is_the_identity_at_the_lowest_knot(tmp_path: Path) -> None:
    pipe = tiny_ddpm()
    facts = {"student": "consistency", "knots": 25, "guidance": None, "boundary": "edm"}
    path = write(tmp_path / "c.safetensors", pipe, "distilled", facts)
    lowest = NoiseModel.from_config(pipe.scheduler.config).table[0]
    with accelerate(pipe, f"distilled(steps=2, weights='{path}')"):
        assert pipe.scheduler.solver.lowest == pytest.approx(lowest)
        x = torch.randn(1, 3, 8, 8)
        assert torch.allclose(pipe.scheduler.solver.function(x, 5 * x, lowest), x, atol=1e-5)
        found = pipe(batch_size=2, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert found.shape == (2, 8, 8, 3)


def test_what_does_not_fit_is_refused(pipe: Any, consistency: str, guidance: str, tmp_path: Path) -> None:
    with pytest.raises(NotApplicableError, match="trained parameters, and none ship") as caught:
        accelerate(pipe, "distilled(steps=4)")
    assert caught.value.hint is not None
    assert "vis-accel distill --model" in caught.value.hint
    with pytest.raises(NotApplicableError, match="none ship"):
        accelerate(pipe, "guidance-distilled")
    other = tiny_dit()
    other.transformer.pos_embed.proj.weight.data += 1
    with pytest.raises(NotApplicableError, match="another model"):
        accelerate(other, f"distilled(weights='{consistency}')")
    with pytest.raises(NotApplicableError, match="guidance-distilled"):
        accelerate(pipe, f"distilled(weights='{guidance}')")
    with pytest.raises(ConflictError, match="scheduler"):
        accelerate(pipe, f"distilled(weights='{consistency}') + dpm(steps=4)")
    with pytest.raises(ConflictError, match="weights"):
        accelerate(pipe, f"distilled(weights='{consistency}') + guidance-distilled(weights='{guidance}')")
    with pytest.raises(UsageError, match=r"must be 1\.5 \.\. 6"):
        accelerate(pipe, f"guidance-distilled(scale=6.5, weights='{guidance}')")
    strange = write(tmp_path / "s.safetensors", pipe, "distilled", {"student": "adversarial"})
    with pytest.raises(DataError, match="adversarial"):
        accelerate(pipe, f"distilled(weights='{strange}')")
    with pytest.raises(NotApplicableError, match="diffusion pipeline"):
        accelerate(_classifier(), "distilled")


def _classifier() -> nn.Module:
    import timm

    return timm.create_model("test_vit", img_size=32, num_classes=3)  # type: ignore[no-any-return]
