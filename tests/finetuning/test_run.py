"""Whole runs: resumption to the bit, early stop, tokens dropped in training only, what is saved and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor

from vis_accel.errors import ModelError, NotApplicableError, UsageError
from vis_accel.eval.accuracy import wilson
from vis_accel.finetuning import run
from vis_accel.finetuning.opening import open_network
from vis_accel.finetuning.options import FinetuneOptions
from vis_accel.finetuning.run import finetune
from vis_accel.finetuning.student import drop_patches
from vis_accel.finetuning.task import FinetuneTask
from vis_accel.zoo import timm_folder

Options = Callable[..., FinetuneOptions]


class Killed(Exception):
    pass


def test_killed_and_resumed_ends_with_the_same_bits(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything that draws random numbers: crops, mixing, patches left out, adapters."""
    common = {"mode": "lora", "rank": 4, "patch_dropout": 0.3, "mixup": 0.2, "augment": "full", "steps": 6}
    finetune(options(output=tmp_path / "whole", **common))
    plain, config = FinetuneTask.begin_step, run._config
    monkeypatch.setattr(run, "_config", lambda *given: replace(config(*given), checkpoint_seconds=0.0))

    def dies(task: FinetuneTask, step: int) -> None:
        if step == 4:
            raise Killed
        plain(task, step)

    monkeypatch.setattr(FinetuneTask, "begin_step", dies)
    with pytest.raises(Killed):
        finetune(options(output=tmp_path / "parts", **common))
    monkeypatch.setattr(FinetuneTask, "begin_step", plain)
    with pytest.raises(UsageError, match=r"other options \(mixup: 0\.2 there, None here\)"):
        finetune(options(output=tmp_path / "parts", resume=True, **{**common, "mixup": None}))
    with pytest.raises(UsageError, match="exists already"):
        finetune(options(output=tmp_path / "parts", **common))
    finetune(options(output=tmp_path / "parts", resume=True, **common))
    whole, parts = (load_file(tmp_path / name / timm_folder.WEIGHTS) for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(UsageError, match="is finished: there is nothing to resume"):
        finetune(options(output=tmp_path / "parts", resume=True, **common))


def test_early_stop_keeps_the_best_weights(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores 1, 3, 2, 2, ... of 8: the second evaluation is the best, and with patience 2 the fourth is the last."""
    right = iter([1, 3, 2, 2, 7, 7, 7, 7])
    monkeypatch.setattr(FinetuneTask, "score", lambda *given, **named: wilson(next(right), 8))
    best: dict[str, Tensor] = {}
    plain = FinetuneTask.evaluate

    def evaluate(task: FinetuneTask, model: Any) -> dict[str, float]:
        scores = plain(task, model)
        if scores["top1"] == 3 / 8:
            best.update({name: tensor.clone() for name, tensor in model.network.state_dict().items()})
        return scores

    monkeypatch.setattr(FinetuneTask, "evaluate", evaluate)
    asked = options(steps=None, epochs=8, patience=2)
    done = finetune(asked)
    history = json.loads((asked.output / "history.json").read_text())["history"]
    assert [row["top1"] for row in history if "top1" in row] == [1 / 8, 3 / 8, 2 / 8, 2 / 8]
    assert done.card["stopped_early"]
    assert done.card["epochs"] == 4
    kept = load_file(asked.output / timm_folder.WEIGHTS)
    assert all(torch.equal(kept[name], best[name]) for name in kept)
    assert "too good" in (asked.output / "finetune.md").read_text()


@pytest.mark.parametrize("model", ["timm/test_vit", "timm/test_vit2"])
def test_tokens_are_dropped_in_training_only(options: Options, monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """4 patches and a class token (test_vit) or a register (test_vit2, which pools the patches): 1 is merged away, half are left out."""
    seen: dict[bool, set[int]] = {True: set(), False: set()}

    def watch(module: Any, given: tuple[Any, ...]) -> None:
        tokens = given[0] if isinstance(given[0], Tensor) else given[0].x
        seen[module.training].add(tokens.shape[1])

    from timm.models.vision_transformer import Mlp

    plain = Mlp.__init__

    def init(layer: Any, *given: Any, **named: Any) -> None:
        plain(layer, *given, **named)
        layer.register_forward_pre_hook(watch)

    monkeypatch.setattr(Mlp, "__init__", init)
    monkeypatch.setattr(FinetuneTask, "score", lambda task, network, part, recipe=False: _score(task, network, part, recipe))
    numbers = (1,) + (0,) * (5 if model == "timm/test_vit" else 7)
    finetune(options(model=model, patch_dropout=0.5, recipe=f"tome(r={numbers})", steps=12))
    assert seen[True] == {2, 4}  # 2 patches kept and 1 merged away; at the end all 4, and 1 merged away
    assert seen[False] == {5}


def _score(task: FinetuneTask, network: Any, part: str, recipe: bool) -> Any:
    """Scores without the recipe, so that evaluation is seen plain."""
    with torch.no_grad():
        assert not network.training
        network(torch.zeros(1, 3, 32, 32))
    return wilson(1, 2)


def test_scores_under_the_recipe_are_given_beside_the_plain_ones(options: Options) -> None:
    asked = options(recipe="tome(r=1)")
    done = finetune(asked)
    assert set(done.top1) == {"validation", "validation under the recipe"}
    assert "test under the recipe" in (asked.output / "finetune.md").read_text()
    row = json.loads((asked.output / "history.json").read_text())["history"][-1]
    assert row["top1_recipe"] == done.top1["validation under the recipe"].value


def test_the_folder_is_timms_and_is_opened_again_with_its_head(options: Options, tmp_path: Path) -> None:
    first = finetune(options(model="timm/levit_128s", size=48, steps=1))
    images = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    theirs = timm.create_model(f"local-dir:{first.folder}", pretrained=True).eval()
    ours = timm_folder.load(first.folder)
    assert torch.equal(theirs(images), ours(images))
    opened = open_network(str(first.folder), random_weights=False, size=None, classes=("blue", "red"), seed=0)
    assert (opened.size, opened.head_kept, opened.arguments) == (48, True, {"img_size": 48})
    assert not open_network(str(first.folder), random_weights=False, size=None, classes=("green", "red"), seed=0).head_kept
    with pytest.raises(UsageError, match="has tables of that size"):
        open_network(str(first.folder), random_weights=False, size=64, classes=("blue", "red"), seed=0)
    again = finetune(options(model=str(first.folder), random_weights=False, size=None, output=tmp_path / "second", steps=1))
    assert again.card["top1_before"]["validation"]["value"] == first.top1["validation"].value


@pytest.mark.parametrize("name", ["levit_128s", "tiny_vit_5m_224"])
def test_no_stale_table_survives_loading(tmp_path: Path, name: str) -> None:
    """In evaluation these keep tables of attention biases, which load_state_dict does not throw away."""
    network = timm.create_model(name, num_classes=2, **({"img_size": 64} if name == "levit_128s" else {}))
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    network.eval()(images)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if "attention_biases" in key:
                parameter.normal_()
    arguments = {"img_size": 64} if name == "levit_128s" else {}
    timm_folder.save(network, tmp_path, size=64, classes=("blue", "red"), arguments=arguments)
    assert torch.allclose(timm_folder.load(tmp_path)(images), network.train().eval()(images), atol=1e-5)


def test_the_bundled_transformer_is_saved_as_a_timm_folder_too(tmp_path: Path) -> None:
    opened = open_network("cifar10-vit", random_weights=False, size=None, classes=("blue", "red"), seed=0)
    timm_folder.save(opened.network, tmp_path, size=32, classes=("blue", "red"), arguments={})
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(timm_folder.load(tmp_path)(images), opened.network(images))
    assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(images), opened.network(images))


def test_folders_that_do_not_fit_their_weights_are_refused(tmp_path: Path) -> None:
    timm_folder.save(timm.create_model("test_vit", num_classes=2), tmp_path, size=160, classes=("blue", "red"), arguments={})
    config = json.loads((tmp_path / timm_folder.CONFIG).read_text())
    for change, words in (
        ({"architecture": "os.system"}, "does not have"),
        ({"num_classes": 5}, "head"),
        ({"model_args": {"embed_dim": 1 << 20}}, "describes"),
        ({"model_args": {"act_layer": {"a": 1}}}, "must hold plain values"),
        ({"pretrained_cfg": None}, "lacks pretrained_cfg"),
    ):
        (tmp_path / timm_folder.CONFIG).write_text(json.dumps(config | change))
        with pytest.raises(ModelError, match=words):
            timm_folder.load(tmp_path)


def test_options_that_would_do_nothing_for_the_network_are_refused(options: Options) -> None:
    with pytest.raises(NotApplicableError, match="ByobNet cannot leave out patches"):
        drop_patches(timm.create_model("test_byobnet"), 0.5)
    with pytest.raises(NotApplicableError, match="tome"):
        finetune(options(model="timm/test_byobnet", recipe="tome(r=1)"))
    with pytest.raises(UsageError, match="dpm is of the family sampler"):
        finetune(options(recipe="dpm(steps=4)"))
    with pytest.raises(UsageError, match="--patience does nothing in a run of 3 steps"):
        finetune(options(patience=1))
    with pytest.raises(UsageError, match="cifar10-vit takes 32 px only"):
        finetune(options(model="cifar10-vit", random_weights=False, size=64))
    with pytest.raises(UsageError, match="random_weights is for timm"):
        finetune(options(model="cifar10-vit"))
    with pytest.raises(NotApplicableError, match="cannot be fine-tuned"):
        finetune(options(model="cifar10-features", random_weights=False))
    with pytest.raises(NotApplicableError, match="makes images"):
        finetune(options(model="cifar10-dit", random_weights=False))
    with pytest.raises(UsageError, match="does not take images of 8 px"):
        finetune(options(model="timm/test_vit", size=8))
    with pytest.raises(UsageError, match="--batch 100 is more than the 24 images"):
        finetune(options(batch=100))
    assert not options().output.exists()
