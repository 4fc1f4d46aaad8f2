"""Trainings of dynamicvit, package, avit and adavit: they change what they should, and write what their method takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from early_exit.test_training import some

from vis_accel import addons, load
from vis_accel.apply import accelerate
from vis_accel.token_pruning.dynamicvit import Dynamicvit
from vis_accel.token_pruning.method_task import MethodTask
from vis_accel.token_pruning.package import Package
from vis_accel.token_pruning.train_adavit import DecidingTask
from vis_accel.token_pruning.train_avit import HaltingTask
from vis_accel.token_pruning.train_dynamicvit import SelectionTask
from vis_accel.training import TrainingConfig, train

SPLITS: dict[str, Any] = {"train": some(16, 0), "calibration": some(8, 1), "test": some(8, 2)}
TASKS: dict[str, tuple[Callable[[], MethodTask], str]] = {
    "dynamicvit": (lambda: SelectionTask(Dynamicvit(), **SPLITS, teacher=load("cifar10-features")), "selectors."),
    "package": (lambda: SelectionTask(Package(selector="trained"), **SPLITS, teacher=load("cifar10-features")), "selectors."),
    "avit": (lambda: HaltingTask(**SPLITS, teacher=load("cifar10-features")), "model."),
    "adavit": (lambda: DecidingTask(**SPLITS, teacher=load("cifar10-features")), "deciders."),
}


@pytest.mark.parametrize("name", TASKS)
def test_it_trains_and_its_method_takes_what_it_wrote(name: str, tmp_path: Path) -> None:
    make, part = TASKS[name]
    task, fresh = make(), make()
    config = TrainingConfig(steps=2, batch_size=8, learning_rate=1e-2, optimizer="muon", weight_decay=0.05, warmup=0.5, compile=False)
    result = train(task, config, output=tmp_path)
    assert set(result.scores) == {"top1"}
    before = dict(fresh.model.named_parameters())
    learnt = {key for key, value in task.model.named_parameters() if not torch.equal(value, before[key])}
    assert [key for key in learnt if key.startswith(part)], "the method's own parameters moved"
    model, path = load("cifar10-vit"), tmp_path / "addon.safetensors"
    facts = addons.find(name, model, str(path)).facts
    assert facts["n"] == 8
    assert 0 < facts["gmacs"] <= facts["gmacs_before"] * 1.05
    pictures = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = model(pictures)
        extra = ", selector='trained'" if name == "package" else ""
        with accelerate(model, f"{name}(weights={str(path)!r}{extra})"):
            assert not torch.equal(model(pictures), plain)
        assert torch.equal(model(pictures), plain)
