"""Adapters: only they are trained, they begin at nothing, and what is kept of them is the student wherever it is loaded."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import peft
import pytest
import torch
from safetensors.torch import load_file
from students.conftest import GUIDANCE
from students.test_run import Killed, Options, images, often
from torch import Tensor, nn

from vis_accel import accelerate, load
from vis_accel.errors import MissingDependencyError, NotApplicableError, UsageError
from vis_accel.students import DistillOptions, distill, lora, run
from vis_accel.students.pool import sampled
from vis_accel.students.teacher import open_teacher
from vis_accel.students.train_lora import LoraTask
from vis_accel.training import _optimizer


@pytest.fixture(params=["dit", "epsilon", "ddpm"])
def task(request: pytest.FixtureRequest, folders: dict[str, Path], options: Callable[..., DistillOptions]) -> LoraTask:
    teacher = open_teacher(load(str(folders[request.param])), None if request.param == "ddpm" else GUIDANCE)
    pool = sampled(teacher, 32, sampler="dpm(steps=2, schedule='trailing')", place=25)
    return LoraTask(options(request.param, method="lcm-lora", rank=4), teacher, pool, pool)


def called(task: LoraTask, network: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    x, times = torch.randn(4, *task.teacher.shape, generator=generator), torch.tensor([0, 300, 700, 999])
    with torch.no_grad():
        return task.teacher.output(network, x, task.teacher.sigmas(times), times, torch.arange(4))


def stepped(task: LoraTask) -> None:
    """Trained for two steps."""
    optimizer = torch.optim.Adam([value for value in task.model.parameters() if value.requires_grad], lr=1e-2)
    for step in range(2):
        batch = task.batch(torch.arange(16), torch.Generator().manual_seed(step))
        task.loss(task.model, *batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        task.end_step(step)


def test_a_student_at_initialisation_is_its_teacher(task: LoraTask) -> None:
    assert torch.equal(called(task, task.model.train()), called(task, task.teacher.network))
    assert torch.equal(called(task, lora.merged(task.model)), called(task, task.teacher.network))


def test_the_adapters_alone_are_trained(task: LoraTask) -> None:
    asked = run._config(task.options)
    trained = {id(value) for group in _optimizer(task.model, asked, {}).param_groups for value in group["params"]}
    names = {name for name, value in task.model.named_parameters() if id(value) in trained}
    assert names
    assert all(".lora_A." in name or ".lora_B." in name for name in names)
    assert len(names) == 2 * len(lora.target_names(task.teacher.network, None, 4))
    before = {name: value.clone() for name, value in task.model.named_parameters()}
    own = {name: value.clone() for name, value in task.teacher.network.state_dict().items()}
    stepped(task)
    for name, value in task.model.named_parameters():
        assert torch.equal(value, before[name]) == (name not in names), name
    assert all(torch.equal(value, own[name]) for name, value in task.teacher.network.state_dict().items())
    targets = dict(task.target.named_parameters())
    assert all(torch.equal(value, targets[name]) for name, value in task.model.named_parameters() if name not in names)
    assert any(not torch.equal(targets[name], before[name]) for name in names)


def test_adapters_are_their_merged_weights_to_rounding(task: LoraTask) -> None:
    stepped(task)
    ours, theirs, plain = (called(task, network) for network in (task.model, lora.merged(task.model), task.teacher.network))
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert (ours - plain).abs().mean() > 100 * (ours - theirs).abs().mean()
    assert task.tensors(task.model)[0].keys() == task.teacher.network.state_dict().keys()


def test_saved_and_loaded_it_is_the_same_to_the_bit(task: LoraTask, tmp_path: Path) -> None:
    """By peft, as diffusers has no loader for these networks."""
    stepped(task)
    assert not hasattr(task.teacher.network, "load_lora_adapter")
    assert not hasattr(task.teacher.pipeline, "load_lora_weights")
    lora.save_adapter(task.model, tmp_path, task.teacher.pipeline)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_model.safetensors", "adapter_config.json"}
    again = peft.PeftModel.from_pretrained(task.teacher.student(), str(tmp_path)).eval()
    task.model.eval().requires_grad_(False)  # of weights to be trained PyTorch takes another convolution, in other rounding
    assert torch.equal(called(task, again), called(task, task.model))
    whole = again.merge_and_unload().state_dict()
    assert all(torch.equal(value, whole[name]) for name, value in lora.merged(task.model).state_dict().items())


def test_the_layers_are_those_of_the_blocks(folders: dict[str, Path]) -> None:
    unet = load(str(folders["ddpm"])).unet
    names = lora.target_names(unet, None, 4)
    kinds = {type(unet.get_submodule(name)) for name in names}
    assert kinds == {nn.Linear, nn.Conv2d}
    assert all(name.startswith(("down_blocks.", "mid_block.", "up_blocks.")) for name in names)
    dit = load(str(folders["dit"])).transformer
    assert lora.target_names(dit, r".*attn1\.to_[qkv]", 4) == [f"transformer_blocks.{i}.attn1.to_{k}" for i in (0, 1) for k in "qkv"]
    assert not [name for name in lora.target_names(dit, None, 4) if "embedding_table" in name]


def test_layers_that_take_no_adapter_are_refused(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    dit = load(str(folders["dit"])).transformer

    def refused(pattern: str | None, match: str, rank: int = 4, network: nn.Module = dit, error: type[Exception] = UsageError) -> None:
        with pytest.raises(error, match=match):
            lora.target_names(network, pattern, rank)

    refused("(", "is no regular expression")
    refused("to_q", "matches no layer")
    refused(r".*\.attn1", r"matches transformer_blocks\.0\.attn1 \(Attention\)")
    refused(r".*embedding_table", r"\(Embedding\); adapters go on linear layers")
    refused(r".*(norm1|to_q)", "AdaLayerNormZero")
    refused(None, r"--rank 17 is above the rank of .*, which is 16", rank=17)
    refused(None, "has no transformer_blocks", network=nn.Sequential(nn.Linear(2, 2)), error=NotApplicableError)
    blocks = nn.Module()
    blocks.mid_block = nn.Sequential(nn.Conv2d(8, 8, 3, groups=2), nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    assert lora.target_names(blocks, None, 4) == ["mid_block.2"]  # neither groups nor a linear layer that attention reads the weights of
    refused(r"mid_block\.0", r"mid_block\.0 \(Conv2d\)", network=blocks)

    plain = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "peft":
            raise ImportError(name)
        return plain(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "peft")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match="needs peft") as caught:
        lora.target_names(dit, None, 4)
    assert caught.value.hint == "pip install 'vis-accel[peft]'"


def test_a_run_ends_in_a_stock_folder_an_addon_and_an_adapter(options: Options) -> None:
    asked = options(method="lcm-lora", rank=4, evaluations=1, learning_rate=1e-2)
    done = distill(asked)
    assert set(done.scores) == {"end_error"}
    stock = diffusers.DiTPipeline.from_pretrained(done.folder / "pipeline")
    assert type(stock.scheduler) is diffusers.LCMScheduler
    pipe = load(asked.model)
    plain = images(pipe, GUIDANCE, 1)
    with accelerate(pipe, f"distilled(steps=1, weights='{done.folder / 'addon.safetensors'}')"):
        ours = images(pipe, GUIDANCE, 1)
    apart = (ours - images(stock, 1.0, 1)).abs().mean()
    assert apart < 0.01
    assert (ours - plain).abs().mean() > 3 * apart
    adapted = load(asked.model)
    adapted.transformer = peft.PeftModel.from_pretrained(adapted.transformer, str(done.folder / "adapter")).merge_and_unload()
    adapted.scheduler = stock.scheduler
    assert (images(adapted, 1.0, 1) - ours).abs().mean() < 0.01
    assert str(asked.model) not in (done.folder / "adapter" / "adapter_config.json").read_text()


def test_killed_and_resumed_ends_with_the_same_bits(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, taken = LoraTask.batch, list[int]()
    asked = options(method="lcm-lora", rank=2, steps=6, dropout=0.3)
    whole = distill(replace(asked, output=tmp_path / "whole"))

    def dies(self: LoraTask, indices: Tensor, generator: torch.Generator) -> Any:
        if len(taken) == 3:
            raise Killed
        taken.append(0)
        return plain(self, indices, generator)

    parts = replace(asked, output=tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(run, "_config", often(run._config))
        patch.setattr(LoraTask, "batch", dies)
        with pytest.raises(Killed):
            distill(parts)
    resumed = distill(replace(parts, resume=True))
    for name in ("checkpoint.safetensors", "adapter/adapter_model.safetensors", "addon.safetensors"):
        ours, theirs = (load_file(folder / name) for folder in (whole.folder, resumed.folder))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items())
    (parts.output / "history.json").unlink()
    with pytest.raises(UsageError, match="rank: 2 there, 4 here"):
        distill(replace(parts, rank=4, resume=True))


def test_options_of_others_are_refused_and_what_does_not_fit_before_anything_is_sampled(options: Options) -> None:
    for changes, match in (
        ({"rank": 4}, "--rank belongs to lcm-lora, not to consistency"), ({"targets": "x"}, "--targets belongs to lcm-lora"),
        ({"method": "lcm-lora", "low": 2.0}, "--low belongs to guidance"), ({"method": "lcm-lora", "rank": 0}, "--rank must be 1"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=match):
            options(**changes)
    assert options(method="lcm-lora", knots=20).knots == 20
    with pytest.raises(UsageError, match="matches no layer"):
        distill(options(method="lcm-lora", targets="nothing"))
    assert not (options().output / "pool.safetensors").exists()
