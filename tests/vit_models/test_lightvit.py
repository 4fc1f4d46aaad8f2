"""LightViT: its size against its authors' figures, windows and global tokens against dense attention, and what timm expects of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from vis_accel.errors import UsageError
from vis_accel.vit_models.lightvit import LightViT
from vis_accel.vit_models.lightvit_blocks import Attention, PatchMerging
from vis_accel.vit_models.view import view
from vit_models import timm_laws as laws

TINY: dict[str, Any] = {"embed_dims": (16, 24, 32), "depths": (1, 2, 1), "num_heads": (2, 2, 4), "neck_dim": 40, "num_classes": 10}


def small(**changes: Any) -> Any:
    return laws.built("lightvit_tiny", **TINY | changes)


def attention(tokens: int = 3) -> Attention:
    torch.manual_seed(0)
    layer = Attention(8, 2, tokens).eval()
    with torch.no_grad():
        layer.relative_position_bias_table.normal_()
    return layer


@pytest.mark.parametrize(
    ("name", "parameters", "macs"), [("lightvit_tiny", 9.4, 0.7), ("lightvit_small", 19.2, 1.7), ("lightvit_base", 35.2, 3.9)]
)
def test_size_is_the_authors(name: str, parameters: float, macs: float) -> None:
    found_parameters, found_macs, model = laws.counted(name)
    assert found_parameters == pytest.approx(parameters, rel=0.005)
    uncounted = 0  # the authors' formula leaves out the second keys and values, and 48 of the 49 products of a window
    for stage, side in zip(model.stages, (28, 14, 7), strict=True):
        for block in stage.blocks:
            dim = block.attn.proj.out_features
            uncounted += 2 * model.num_prefix_tokens * dim**2 + 2 * side**2 * dim * 48
    assert round(found_macs - uncounted / 1e9, 1) == macs
    assert found_macs == pytest.approx({0.7: 0.772, 1.7: 1.825, 3.9: 4.107}[macs], rel=0.001)


def test_convolutions_are_the_patch_embedding() -> None:
    for name, part in timm.create_model("lightvit_tiny").named_modules():
        if isinstance(part, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d)):
            assert name.startswith("patch_embed")


def dense(layer: Attention, x: Tensor, grid: tuple[int, int], window: tuple[int, int]) -> Tensor:
    """The layer by its equations, with all scores of all tokens and a loop over pairs of places."""
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    bias = torch.full((layer.heads, len(places), len(places)), float("-inf"))
    for i, (row, column) in enumerate(places):
        for j, (other_row, other_column) in enumerate(places):
            if (row // window[0], column // window[1]) == (other_row // window[0], other_column // window[1]):
                bias[:, i, j] = layer.relative_position_bias_table[(row - other_row + 6) * 13 + column - other_column + 6]

    def heads(y: Tensor) -> Tensor:
        return y.unflatten(-1, (layer.heads, -1)).transpose(1, 2)

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | float = 0.0) -> Tensor:
        scores = q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias
        return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)

    q, k, v = (heads(part) for part in layer.qkv(x).chunk(3, dim=-1))
    q, k, v, global_q = q[:, :, layer.tokens :], k[:, :, layer.tokens :], v[:, :, layer.tokens :], q[:, :, : layer.tokens]
    gathered = attend(global_q, k, v)
    far_k, far_v = (heads(part) for part in layer.spread(gathered).chunk(2, dim=-1))
    return layer.proj(torch.cat((gathered, attend(q, k, v, bias) + attend(q, far_k, far_v)), dim=1))


@pytest.mark.parametrize(
    ("grid", "window"),
    [((7, 7), (7, 7)), ((14, 7), (7, 7)), ((4, 4), (4, 4)), ((2, 1), (2, 1)), ((8, 11), (4, 6)), ((9, 16), (5, 6))],
)
def test_attention_is_the_equations(grid: tuple[int, int], window: tuple[int, int]) -> None:
    layer = attention()
    x = torch.randn(2, 3 + grid[0] * grid[1], 8)
    with torch.no_grad():
        torch.testing.assert_close(layer(x, grid), dense(layer, x, grid, window), rtol=1e-4, atol=1e-5)


def test_global_tokens_tell_far_windows() -> None:
    layer = attention()
    x = torch.randn(1, 3 + 14 * 14, 8)
    changed = x.clone()
    changed[:, 3] += 1  # the first place of the image
    with torch.no_grad():
        far = (slice(None), slice(3 + 13 * 14 + 7, None))  # of the last window
        assert bool((layer(changed, (14, 14))[far] != layer(x, (14, 14))[far]).any(dim=-1).all())
        layer.spread.weight.zero_()
        layer.spread.bias.zero_()
        assert torch.equal(layer(changed, (14, 14))[far], layer(x, (14, 14))[far])


def test_zeroed_global_tokens_change_every_window() -> None:
    model, x = small(), laws.images(1, 128)
    with torch.no_grad():
        (before,) = model.forward_intermediates(x, indices=[0], intermediates_only=True)
        model.global_tokens.zero_()
        (after,) = model.forward_intermediates(x, indices=[0], intermediates_only=True)
    assert bool((before != after).any(dim=1).all())


def test_merging_takes_neighbours() -> None:
    layer = PatchMerging(4, 6, tokens=2).eval()
    x = torch.randn(1, 2 + 4 * 6, 4)
    grid = x[:, 2:].unflatten(1, (4, 6))
    with torch.no_grad():
        out = layer(x, (4, 6))
        four = grid[:, 2:4, 4:6].reshape(4, 4)  # row 1, column 2 of the 2 x 3 that come out
        want = layer.reduction(layer.norm(four.flatten())) + layer.residual(four.max(dim=0).values)
        torch.testing.assert_close(out[0, 2 + 1 * 3 + 2], want)
        torch.testing.assert_close(out[:, :2], layer.global_reduction(layer.global_norm(x[:, :2])))
    assert out.shape == (1, 2 + 6, 6)


def test_is_a_model_of_timms() -> None:
    model, x = small(), laws.images(3, 64)
    assert isinstance(model, LightViT)
    assert timm.is_model("lightvit_base")
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()
    assert model.no_weight_decay() == {
        "global_tokens",
        *(f"stages.{place}.attn.relative_position_bias_table" for place in ("0.blocks.0", "1.blocks.0", "1.blocks.1", "2.blocks.0")),
    }
    laws.logits_by_steps(model, x)
    laws.batch_is_one_by_one(model, x)
    laws.state_comes_back(model, timm.create_model("lightvit_tiny", **TINY).eval(), x)
    laws.intermediates(model, x, timm.create_model("lightvit_tiny", features_only=True, **TINY))
    laws.layers_for_decay(model, blocks=4)
    laws.head_can_be_changed(model, x)


def test_learns() -> None:
    laws.learns(small(), laws.images(6, 64))


def test_drop_path_rises_and_dropout_is_the_heads() -> None:
    model = timm.create_model("lightvit_tiny", drop_path_rate=0.3, drop_rate=0.2, **TINY)
    assert [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert model.head_drop.p == 0.2


@pytest.mark.parametrize("size", [(32, 32), (128, 96), (160, 352)])
def test_other_sizes(size: tuple[int, int]) -> None:
    with torch.no_grad():
        found = small().forward_features(laws.images(2, *size))
    assert found.shape == (2, 8 + size[0] // 32 * (size[1] // 32), 32)
    assert bool(found.isfinite().all())


def test_refuses_what_does_not_fit() -> None:
    laws.refuses(lambda: small()(laws.images(1, 100, 224)), UsageError, "multiples of 32", "100 x 224", "96 x 224")
    laws.refuses(lambda: small(num_tokens=0), UsageError, "num_tokens", ">= 1", "got 0")
    laws.refuses(lambda: small(depths=(1, 1)), UsageError, "one number a stage", "(1, 1)")
    laws.refuses(lambda: small(num_heads=(2, 2, 5)), UsageError, "heads divide", "(32, 1, 5, 4)")
    laws.refuses(lambda: small(global_pool="max"), UsageError, "'avg'", "'max'")
    laws.refuses(lambda: small().forward_intermediates(laws.images(1, 32), output_fmt="NLC"), UsageError, "NCHW", "NLC")
    laws.refuses(lambda: view(small()).require_blocks("tome"), UsageError, "tome", "within windows")


@pytest.mark.parametrize("size", [64, 128])  # at 128, windows are masked
def test_torch_export_with_a_dynamic_batch(size: int) -> None:
    laws.exported(small(), laws.images(2, size))


def test_onnx_is_pytorch(tmp_path: Path) -> None:
    laws.in_onnx(small(), laws.images(2, 128), tmp_path)
