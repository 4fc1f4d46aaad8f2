"""int8, bf16 and channels-last on a DiT, a U-Net and a vision transformer: close, taken off without a trace, and clear when they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from precision.targets import NAMES, answer, build, parts, state
from torch import Tensor, nn
from vit_models.families import images, tiny

from vis_accel import ConflictError, NoEffectError, NotApplicableError, UsageError
from vis_accel.apply import accelerate
from vis_accel.generation import Job
from vis_accel.precision import kernels
from vis_accel.precision.layers import candidates, float_layer
from vis_accel.precision.rounding import fake_activation

needs_kernels = pytest.mark.skipif(kernels.supported() is not None, reason=str(kernels.supported()))
needs_bf16 = pytest.mark.skipif(not torch.cpu._is_avx512_bf16_supported(), reason="no bfloat16 arithmetic")

INT8 = "int8(probe=False, images=4)"  # layers as small as these are no faster
DYNAMIC = "int8(activations='dynamic', probe=False)"
RECIPES = [
    pytest.param(INT8, marks=needs_kernels),
    pytest.param(DYNAMIC, marks=needs_kernels),
    pytest.param(f"bf16 + {INT8}", marks=[needs_kernels, needs_bf16]),
    pytest.param("bf16", marks=needs_bf16),
    "channels-last",
]


def put(target: Any, recipe: str) -> Any:
    if isinstance(target, nn.Module):
        return accelerate(target, recipe, calibration=images())
    return accelerate(target, recipe, calibration=Job(steps=3, class_labels=() if hasattr(target, "unet") else (1, 2)))


def rounded(network: nn.Module) -> list[Any]:
    """The layers that are rounded now."""
    return [layer for layer in candidates(network) if hasattr(vars(layer.module).get("forward"), "bits")]


def inside(module: nn.Module) -> Any:
    """The one part of a rounded layer."""
    (part,) = vars(module)["forward"].parts
    return part


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).pow(2).mean().sqrt() / wanted.std())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", RECIPES)
def test_it_is_close_and_can_be_taken_off(name: str, recipe: str) -> None:
    target = build(name)
    plain, before = answer(target), state(target)
    handle = put(target, recipe)
    changed = answer(target)
    assert changed.dtype == plain.dtype
    assert torch.equal(answer(target), changed)
    assert apart(changed, plain) < (1e-4 if recipe == "channels-last" else 0.1)
    if recipe != "channels-last":
        assert not torch.equal(changed, plain)
    handle.suspend()
    assert state(target) == before
    assert torch.equal(answer(target), plain)
    handle.resume()
    assert torch.equal(answer(target), changed)
    handle.remove()
    assert state(target) == before
    assert torch.equal(answer(target), plain)


@needs_kernels
@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_and_most_layers_are_taken(name: str) -> None:
    target = build(name)
    with put(target, INT8) as handle:
        assert f"{sum(len(rounded(part)) for part in parts(target))} of " in handle.report()["int8"]
        if name == "dit":
            assert rounded(target.vae.decoder)
            assert not rounded(target.vae.encoder)
            assert not hasattr(vars(target.transformer.pos_embed.proj).get("forward"), "bits")
    with put(target, "int8(probe=False, vae=False, images=4)"):
        if name == "dit":
            assert not rounded(target.vae.decoder)


@needs_kernels
@torch.no_grad()
def test_the_kernel_is_the_rounded_layer_to_rounding() -> None:
    """What a layer with integer kernels gives is what its rounded weights and activations give in float."""
    model = tiny("plain")
    layer, inputs = model.blocks[1].mlp.fc1, list[Tensor]()
    with accelerate(model, INT8, calibration=images()):
        hook = layer.register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))
        model(images())
        hook.remove()
        found = layer(inputs[0])
        part = inside(layer)
    weight = part.whole.float() * part.scales[:, None]
    wanted = float_layer(layer, fake_activation(inputs[0], part.scale_of, part.zero_of), weight)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@needs_kernels
def test_the_calibration_is_of_the_recipe() -> None:
    """Scales come from the run with this sampler and its guidance, so another sampler gives others."""
    target, scales = build("dit"), list[list[float]]()
    for sampler in ("euler(steps=2)", "euler(steps=8)"):
        with accelerate(target, f"{sampler} + {INT8}", calibration=Job(class_labels=(1, 2), guidance_scale=4.0)):
            scales.append([inside(layer.module).scale_of.item() for layer in rounded(target.transformer)])
    assert len(scales[0]) == len(scales[1]) > 5
    assert sum(one != other for one, other in zip(*scales, strict=True)) > 3


@needs_kernels
def test_originals_can_be_freed() -> None:
    model = tiny("plain")
    with torch.no_grad():
        wanted = model(images())
        handle = accelerate(model, "int8(probe=False, keep_original=False)", calibration=images())
        assert apart(model(images()), wanted) < 0.1
    assert model.blocks[0].mlp.fc1.weight.numel() == 0
    with pytest.raises(UsageError, match="freed its originals"):
        handle.remove()


@needs_kernels
@torch.no_grad()
def test_a_traced_graph_holds_fake_quantization_and_the_same_numbers() -> None:
    model = tiny("plain")
    with accelerate(model, INT8, calibration=images()):
        wanted = model(images())
        traced = torch.jit.trace(model, images(), check_trace=False)
        assert "fake_quantize" in str(traced.inlined_graph)
        assert apart(traced(images()), wanted) < 0.02  # a value on the edge of two steps may fall to either
    with accelerate(model, DYNAMIC), pytest.raises(UsageError, match="cannot be part of a graph"):
        torch.jit.trace(model, images(), check_trace=False)


@needs_kernels
def test_refusals() -> None:
    model = tiny("plain")
    with pytest.raises(UsageError, match="No images are known"):
        accelerate(model, "int8")
    with pytest.raises(UsageError, match="A job is for pipelines"):
        accelerate(model, "int8", calibration=Job())
    with pytest.raises(UsageError, match="images it makes"):
        accelerate(build("unet"), "int8", calibration=images())
    handle = accelerate(model, INT8, calibration=images())
    with pytest.raises(ConflictError, match="quantized already"):
        accelerate(model, INT8, calibration=images())
    handle.remove()
    narrow = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 1024, 4)).eval()
    with pytest.raises(NoEffectError, match="1 first layer; 1 last layer"):
        accelerate(narrow, INT8, calibration=images())


def test_a_machine_without_the_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(NotApplicableError, match="VNNI"):
        accelerate(tiny("plain"), "int8", calibration=images())
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    with pytest.raises(NotApplicableError, match="no bfloat16 arithmetic"):
        accelerate(tiny("plain"), "bf16")


@needs_bf16
def test_bf16_keeps_what_others_see() -> None:
    target = build("dit")
    with accelerate(target, "bf16"):
        assert target.transformer.dtype == torch.float32  # the pipeline makes its noise in this dtype
        assert {parameter.dtype for parameter in target.transformer.parameters()} == {torch.float32}
    with pytest.raises(NoEffectError, match="in bfloat16 already"):
        accelerate(build("vit").to(torch.bfloat16), "bf16")
