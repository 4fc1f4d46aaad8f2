"""Each mode changes what it should and nothing else; adapters merge; layers learn at their own rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.finetuning import adapters, scales
from vis_accel.finetuning.opening import head_modules, open_network
from vis_accel.finetuning.options import FinetuneOptions
from vis_accel.finetuning.run import _student, finetune
from vis_accel.finetuning.student import PREFIX

Options = Callable[..., FinetuneOptions]


def start(options: FinetuneOptions) -> dict[str, Tensor]:
    """The state a run begins with."""
    opened = open_network(options.model, random_weights=True, size=options.size, classes=("blue", "red"), seed=options.seed)
    student, _, _ = _student(options, opened, None)
    return {name: tensor.clone() for name, tensor in student.state_dict().items()}


def changed(options: FinetuneOptions) -> set[str]:
    """Names of the tensors that a run changed, in the weights and in their average."""
    before = start(options)
    finetune(options)
    after = load_file(options.output / "checkpoint.safetensors")
    return {name for name, tensor in before.items() for part in ("model", "ema") if not torch.equal(after[f"{part}.{name}"], tensor)}


def test_full_changes_everything_that_has_a_gradient(options: Options) -> None:
    asked = options()
    assert changed(asked) == set(start(asked))


@pytest.mark.parametrize("mode", ["lora", "dora", "pissa"])
def test_adapters_change_themselves_and_the_head(options: Options, mode: str) -> None:
    found = changed(options(mode=mode, rank=4))
    assert {name.removeprefix(f"{PREFIX}base_model.model.") for name in found if "lora_" not in name} == {"head.weight", "head.bias"}
    layers = {name.partition(".lora_")[0] for name in found if "lora_" in name}
    assert len(layers) == 6 * 4  # qkv, proj, fc1 and fc2 of six blocks; not patch_embed.proj, which is a convolution
    assert all(".blocks." in name for name in layers)


def test_head_changes_the_head_alone_and_no_running_statistics(options: Options) -> None:
    assert changed(options(model="timm/test_byobnet", mode="head")) == {f"{PREFIX}head.fc.weight", f"{PREFIX}head.fc.bias"}


def test_full_updates_running_statistics(options: Options) -> None:
    assert any("running_mean" in name for name in changed(options(model="timm/test_byobnet")))


@pytest.mark.parametrize("mode", ["lora", "dora", "pissa"])
def test_merged_adapters_give_the_same_logits_and_a_plain_network(mode: str) -> None:
    network = timm.create_model("test_vit", num_classes=2, img_size=32).eval()
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    plain = network(images)
    heads = head_modules(network)
    names = list(network.state_dict())
    holder = adapters.adapted(network, mode, targets=adapters.target_names(network, None, heads), heads=heads, rank=4, alpha=None, seed=0)
    torch.testing.assert_close(holder.eval()(images), plain, rtol=1e-4, atol=1e-5)  # nothing is changed by putting them on
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in holder.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    trained = holder(images)
    assert (trained - plain).abs().max() > 1e-2
    merged, difference = adapters.merged(holder, images)
    torch.testing.assert_close(merged(images), trained, rtol=1e-4, atol=1e-5)
    assert difference < 1e-5
    assert list(merged.state_dict()) == names


def test_targets_that_match_the_wrong_layers_are_refused() -> None:
    network = timm.create_model("test_vit", num_classes=2)
    with pytest.raises(UsageError, match=r"matches patch_embed\.proj \(Conv2d\)"):
        adapters.target_names(network, r".*proj", ["head"])
    with pytest.raises(UsageError, match="matches no layer") as caught:
        adapters.target_names(network, r"query", ["head"])
    assert "blocks.0.attn.qkv" in str(caught.value.hint)
    with pytest.raises(UsageError, match="part of the head"):
        adapters.target_names(network, r"head", ["head"])
    with pytest.raises(UsageError, match="no regular expression"):
        adapters.target_names(network, r"(", ["head"])
    with pytest.raises(NotApplicableError, match="has no linear layers outside its head"):
        adapters.target_names(timm.create_model("test_byobnet"), None, ["head.fc"])
    with pytest.raises(UsageError, match=r"--rank 65 is above the rank of blocks\.0\.attn\.qkv"):
        adapters.adapted(network, "lora", targets=["blocks.0.attn.qkv"], heads=["head"], rank=65, alpha=None, seed=0)


def test_layers_learn_slower_towards_the_images(options: Options) -> None:
    asked = options(layer_decay=0.5)
    opened = open_network(asked.model, random_weights=True, size=32, classes=("blue", "red"), seed=0)
    _, rates, _ = _student(asked, opened, None)
    depth = max(scales.layers(opened.network).values())
    assert rates[f"{PREFIX}patch_embed.proj.weight"] == 0.5**depth
    assert f"{PREFIX}head.weight" not in rates  # at the full rate
    blocks = [rates[f"{PREFIX}blocks.{index}.attn.qkv.weight"] for index in range(6)]
    assert all(later == 2 * earlier for earlier, later in pairwise(blocks))
    again = open_network(asked.model, random_weights=True, size=32, classes=("blue", "red"), seed=0)
    _, rates, _ = _student(replace(asked, mode="lora", lora_plus=32.0), again, None)
    layer = f"{PREFIX}base_model.model.blocks.2.attn.qkv.lora"
    assert rates[f"{layer}_A.default.weight"] == blocks[2]
    assert rates[f"{layer}_B.default.weight"] == 32 * blocks[2]


def test_rates_reach_the_optimiser(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each group's rate is the schedule's times its scale."""
    from vis_accel import training

    seen: list[dict[float, float]] = []
    plain = training._Run._watch

    def watch(run: training._Run) -> None:
        seen.append({group["lr_scale"]: group["lr"] for group in run.optimizer.param_groups})
        plain(run)

    monkeypatch.setattr(training._Run, "_watch", watch)
    finetune(options(layer_decay=0.5, steps=1, learning_rate=0.1))
    assert len(seen[0]) > 5
    highest = max(seen[0].values())
    assert all(rate == pytest.approx(highest * scale) for scale, rate in seen[0].items())


def test_layer_decay_wants_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotApplicableError, match="Linear has no group_matcher"):
        scales.layers(torch.nn.Linear(2, 2))
    network = timm.create_model("test_vit")
    monkeypatch.setattr(network, "group_matcher", lambda coarse: {"stem": ".*"})
    with pytest.raises(NotApplicableError, match="are in one layer"):
        scales.layers(network)
