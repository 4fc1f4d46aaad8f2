"""weight-only: what is kept, how far it is from the float weight, and what that takes."""

from __future__ import annotations

import pytest
import torch
from precision.targets import answer, build, state
from torch import nn
from vit_models.families import images, tiny

from vis_accel import ConflictError, NoEffectError, UsageError
from vis_accel.apply import accelerate
from vis_accel.precision.weight_only import PackedWeight, halves_of_bytes, two_in_a_byte


def test_two_numbers_in_a_byte_and_back() -> None:
    whole = torch.arange(-8, 8, dtype=torch.int8).repeat(3, 1)
    pairs = two_in_a_byte(whole)
    assert (pairs.shape, pairs.dtype) == ((3, 8), torch.uint8)
    assert torch.equal(halves_of_bytes(pairs), whole)


@pytest.mark.parametrize(
    ("bits", "group", "bytes_"), [(8, 64, 32 * 192 + 4 * 32), (4, 64, 32 * 96 + 4 * 32 * 3), (4, 50, 32 * 96 + 4 * 32)]
)
def test_a_weight_is_near_and_small(bits: int, group: int, bytes_: int) -> None:
    weight = torch.randn(32, 192, generator=torch.Generator().manual_seed(0))
    packed = PackedWeight(weight, bits, group)
    assert packed.bytes == bytes_  # a group that does not divide the width is the whole row
    found = packed.values(torch.float32)
    if bits == 8:  # nothing is clipped: half a step at most
        assert ((found - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 / 2 * 1.001).all()
    assert (found - weight).norm() / weight.norm() < (0.008 if bits == 8 else 0.15)


def test_small_groups_lose_less() -> None:
    weight = torch.randn(16, 256, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 0, 256)
    errors = [float((PackedWeight(weight, 4, group).values(torch.float32) - weight).norm()) for group in (16, 256)]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize("name", ["dit", "unet", "vit"])
@pytest.mark.parametrize("recipe", ["weight-only", "weight-only(bits=4, group=16)"])
@torch.no_grad()
def test_it_is_close_and_can_be_taken_off(name: str, recipe: str) -> None:
    target = build(name)
    plain, before = answer(target), state(target)
    with accelerate(target, recipe):
        changed = answer(target)
    assert 0 < float((changed - plain).norm() / plain.norm()) < (0.05 if "bits" not in recipe else 0.5)
    assert state(target) == before
    assert torch.equal(answer(target), plain)


@torch.no_grad()
def test_freed_floats_are_bytes_saved() -> None:
    model = tiny("plain")
    full = sum(parameter.nbytes for parameter in model.parameters())
    handle = accelerate(model, "weight-only(keep_original=False)")
    left = sum(parameter.nbytes for parameter in model.parameters())
    packed = sum(cell.bytes for module in model.modules() if (cell := _packed(module)) is not None)
    assert f"now {left + packed:,}" in handle.report()["weight-only"]
    assert left + packed < 0.5 * full
    assert model(images()).isfinite().all()
    with pytest.raises(UsageError, match="freed its originals"):
        handle.remove()


def _packed(module: nn.Module) -> PackedWeight | None:
    cells = getattr(vars(module).get("forward"), "__closure__", None) or ()
    return next((cell.cell_contents for cell in cells if isinstance(cell.cell_contents, PackedWeight)), None)


def test_refusals() -> None:
    model = tiny("plain")
    with pytest.raises(UsageError, match="bits"):
        accelerate(model, "weight-only(bits=3)")
    with pytest.raises(ConflictError, match="both replace"):
        accelerate(model, "weight-only + int8")
    with accelerate(model, "weight-only"), pytest.raises(ConflictError, match="quantized already"):
        accelerate(model, "weight-only(bits=4)")
    with pytest.raises(NoEffectError, match="no weight of 1024"):
        accelerate(nn.Sequential(nn.Linear(8, 8)).eval(), "weight-only")
