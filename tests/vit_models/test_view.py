"""What the view says of timm's models, and that its parts are the blocks."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models import vision_transformer
from torch import nn
from vit_models.families import FAMILIES, images, tiny

from vis_accel.apply import accelerate
from vis_accel.errors import NotApplicableError
from vis_accel.vit_models.view import view


def seen_by_blocks(model: Any, pictures: torch.Tensor) -> list[tuple[torch.Tensor, Any, torch.Tensor]]:
    """(input, rope, output) of every block."""
    seen: list[tuple[torch.Tensor, Any, torch.Tensor]] = []
    hooks = [
        block.register_forward_hook(lambda m, args, options, out: seen.append((args[0], options.get("rope"), out)), with_kwargs=True)
        for block in model.blocks
    ]
    with torch.no_grad():
        model(pictures)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_two_halves_are_the_block(family: str) -> None:
    model = tiny(family)
    found = view(model)
    assert found.refusal is None
    for block, (x, rope, out) in zip(found.blocks, seen_by_blocks(model, images()), strict=True):
        with torch.no_grad():
            ours = block.feed(block.attention(x, rope=rope).x)
        torch.testing.assert_close(ours, out, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_attention_is_the_first_rows(family: str) -> None:
    model = tiny(family)
    found = view(model)
    if not found.prefix:
        pytest.skip("no prefix")
    for block, (x, rope, _) in zip(found.blocks, seen_by_blocks(model, images()), strict=True):
        with torch.no_grad():
            whole, part = block.attention(x, rope=rope).x, block.prefix_attention(x, found.prefix, rope=rope)
        torch.testing.assert_close(part, whole[:, : found.prefix], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "prefix", "readers", "pooling", "rotary"),
    [
        ("plain", 1, 1, "token", False),
        ("distilled", 2, 2, "token", False),
        ("dinov2", 5, 1, "token", False),
        ("siglip", 0, 0, "map", False),
        ("registers-average", 2, 0, "avgmax", False),
        ("eva", 1, 0, "avg", True),
        ("dinov3", 5, 1, "token", True),
    ],
)
def test_facts(family: str, prefix: int, readers: int, pooling: str, rotary: bool) -> None:
    found = view(tiny(family))
    assert (found.prefix, found.readers, found.pooling, found.rotary) == (prefix, readers, pooling, rotary)
    assert (found.grid, found.patches, found.classes, len(found.blocks)) == ((4, 4), 16, 10, 4)


@pytest.mark.parametrize(
    "name", ["levit_128s", "mobilevit_xxs", "efficientvit_b0", "efficientvit_m0", "fastvit_t8", "edgenext_xx_small", "tiny_vit_5m_224"]
)
def test_models_that_need_their_grid_are_refused_with_the_reason(name: str) -> None:
    model = timm.create_model(name, num_classes=10)
    with pytest.raises(NotApplicableError, match="grid") as caught:
        accelerate(model, "tome(r=2)")
    assert "compile" in str(caught.value)


@pytest.mark.parametrize("kind", ["ResPostBlock", "ParallelScalingBlock", "ParallelThingsBlock"])
def test_a_block_that_is_not_known_is_an_error_that_names_it(kind: str) -> None:
    model = vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, block_fn=getattr(vision_transformer, kind)
    )
    with pytest.raises(NotApplicableError, match=kind):
        accelerate(model, "evit(keep=0.5)")


def test_subclasses_and_strangers_are_refused() -> None:
    class Mine(vision_transformer.VisionTransformer):
        pass

    for model in (Mine(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2), nn.Linear(2, 2)):
        with pytest.raises(NotApplicableError, match=type(model).__name__):
            accelerate(model, "tome(r=2)")


def test_a_sampler_has_no_business_on_a_classifier() -> None:
    with pytest.raises(NotApplicableError, match="sampler"):
        accelerate(tiny("plain"), "ddim(steps=4)")
