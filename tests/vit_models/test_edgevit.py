"""EdgeViT: its size against the paper's and a recount, its sparse attention, and what timm expects of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from vis_accel.errors import UsageError
from vis_accel.vit_models.edgevit import EdgeViT, SparseAttention
from vis_accel.vit_models.view import view
from vit_models import timm_laws as laws

TINY: dict[str, Any] = {"embed_dims": (8, 16, 24, 32), "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "num_classes": 10}


def small(**changes: Any) -> Any:
    return laws.built("edgevit_xxs", **TINY | changes)


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("edgevit_xxs", 4.1, 0.557), ("edgevit_xs", 6.7, 1.136), ("edgevit_s", 13.1, 1.905)],
)
def test_size_is_within_two_percent(name: str, parameters: float, macs: float) -> None:
    # 13.1 is a recount's; the paper prints 11.1, which the released depths do not give (see the module). The third decimals are others'.
    found_parameters, found_macs, _ = laws.counted(name)
    assert found_parameters == pytest.approx(parameters, rel=0.02)
    assert found_macs == pytest.approx(macs, rel=0.02)


@pytest.mark.parametrize("name", ["edgevit_xxs", "edgevit_xs", "edgevit_s"])
def test_macs_round_to_the_paper(name: str) -> None:
    assert round(laws.counted(name)[1], 1) == {"edgevit_xxs": 0.6, "edgevit_xs": 1.1, "edgevit_s": 1.9}[name]


def test_delegates_attend_and_their_windows_receive() -> None:
    torch.manual_seed(0)
    layer = SparseAttention(8, 2, 2).eval()
    x = torch.randn(1, 6, 4, 8)
    with torch.no_grad():
        y = layer(x)
        others = x.clone()
        others[:, 1::2] += 1  # no delegate is in an odd row
        assert torch.equal(layer(others), y)
        one = x.clone()
        one[:, 4, 2] += 1  # a delegate: every window hears of it
        assert bool((layer(one) != y).flatten(0, 2).any(dim=1).all())
        delegates = x[:, ::2, ::2].flatten(1, 2)
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in layer.qkv(delegates).chunk(3, dim=-1))
        among = (torch.softmax(q @ k.transpose(2, 3) / 2, dim=-1) @ v).transpose(1, 2).flatten(2).unflatten(1, (3, 2))
        assert layer.spread is not None
        kernel = layer.spread.weight[:, 0]  # C x s x s: what a delegate gives each place of its window
        windows = torch.einsum("bijc,cpq->bipjqc", among, kernel).flatten(1, 2).flatten(2, 3) + layer.spread.bias
        torch.testing.assert_close(layer.proj(torch.nn.functional.layer_norm(windows, (8,), layer.norm.weight, layer.norm.bias, 1e-6)), y)


def test_scores_fall_by_the_fourth_power() -> None:
    work = []
    for stride in (1, 2, 4):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            SparseAttention(8, 2, stride).eval()(torch.randn(1, 16, 16, 8))
        work.append(sum(count for name, count in counter.get_flop_counts()["Global"].items() if "attention" in str(name)))
    assert work == [work[2] * 256, work[2] * 16, work[2]]
    assert work[2] == 2 * 2 * 16 * 16 * 8  # two products of 16 x 16 scores, 8 channels, two operations each


def test_is_a_model_of_timms() -> None:
    model, x = small(), laws.images(3, 64)
    assert isinstance(model, EdgeViT)
    assert timm.is_model("edgevit_s")
    assert model.pretrained_cfg["input_size"] == (3, 224, 224)
    assert model.get_submodule(model.pretrained_cfg["first_conv"]).in_channels == 3
    assert model.get_submodule(model.pretrained_cfg["classifier"]) is model.get_classifier()
    laws.logits_by_steps(model, x)
    laws.batch_is_one_by_one(model, x)
    laws.state_comes_back(model, timm.create_model("edgevit_xxs", **TINY).eval(), x)
    laws.intermediates(model, x, timm.create_model("edgevit_xxs", features_only=True, **TINY))
    laws.layers_for_decay(model, blocks=5)
    laws.head_can_be_changed(model, x)


def test_learns() -> None:
    laws.learns(small(), laws.images(6, 64))


def test_drop_path_rises_and_dropout_is_the_heads() -> None:
    model = timm.create_model("edgevit_xxs", drop_path_rate=0.4, drop_rate=0.3, **TINY)
    rates = [
        part.drop_prob for name, part in model.named_modules() if name.endswith("1.drop_path") or name == "stages.3.blocks.0.0.drop_path"
    ]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert model.head.drop.p == 0.3


@pytest.mark.parametrize("size", [(32, 32), (96, 64), (160, 160)])
def test_other_sizes(size: tuple[int, int]) -> None:
    with torch.no_grad():
        assert small().forward_features(laws.images(1, *size)).shape == (1, 32, size[0] // 32, size[1] // 32)


def test_refuses_what_does_not_fit() -> None:
    laws.refuses(lambda: small()(laws.images(1, 100, 224)), UsageError, "multiples of 32", "100 x 224", "96 x 224")
    laws.refuses(lambda: small(strides=(8, 2, 2, 2))(laws.images(1, 96)), UsageError, "multiples of 64")
    laws.refuses(lambda: small(depths=(1, 1)), UsageError, "one number a stage", "(1, 1)")
    laws.refuses(lambda: small(num_heads=(1, 2, 2, 5)), UsageError, "heads divide", "(32, 1, 5, 1)")
    laws.refuses(lambda: small().reset_classifier(5, ""), UsageError, "global_pool=")
    laws.refuses(lambda: small().forward_intermediates(laws.images(1, 32), output_fmt="NLC"), UsageError, "NCHW", "NLC")
    laws.refuses(lambda: view(small()).require_blocks("tome"), UsageError, "tome", "samples the grid")


def test_torch_export_with_a_dynamic_batch() -> None:
    laws.exported(small(), laws.images(2, 64))


def test_onnx_is_pytorch(tmp_path: Path) -> None:
    laws.in_onnx(small(), laws.images(2, 64), tmp_path)
