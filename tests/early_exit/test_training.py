"""Training of exits: what is frozen stays, what is written is what runs, and the loss is what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from vit_models.families import images, tiny

from vis_accel import accelerate, addons, load
from vis_accel.early_exit.train import ExitTask, MultiExit, default_config, multi_exit_loss
from vis_accel.training import TrainingConfig, train
from vis_accel.zoo.cifar10 import Images


def some(count: int, seed: int) -> Images:
    """Random images of CIFAR-10's size."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.randint(0, 10, (count,), generator=generator), f"{seed:064}")


def trained(folder: Path, *, frozen: bool) -> tuple[ExitTask, Path]:
    """Two steps on random images, through the trainer."""
    task = ExitTask(some(16, 0), some(24, 1), some(8, 2), load("cifar10-features"), exits=((1, "mlp"), (4, "local")), frozen=frozen)
    config = TrainingConfig(steps=2, batch_size=8, learning_rate=1e-2, optimizer="muon", weight_decay=0.05, warmup=0.5, compile=False)
    result = train(task, config, output=folder)
    assert set(result.scores) == {"exit 1", "exit 4", "top1"}
    return task, folder / "addon.safetensors"


@torch.no_grad()
def answers(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(pictures)
    return found


def test_a_frozen_backbone_keeps_every_bit(tmp_path: Path) -> None:
    plain = load("cifar10-vit")
    task, file = trained(tmp_path / "run", frozen=True)
    network: Any = task.model
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in network.vit.state_dict().items())
    fresh = ExitTask(some(16, 0), some(24, 1), some(8, 2), load("cifar10-features"), exits=task.exits, frozen=True).model
    learnt = [not torch.equal(a, b) for a, b in zip(network.heads.parameters(), fresh.heads.parameters(), strict=True)]  # type: ignore[union-attr, arg-type]
    assert all(learnt)
    addon = addons.find("early-exit", plain, str(file))
    assert not [name for name in addon.tensors if name.startswith("model.")]
    pictures = task.crops.normalised(task.test.pixels.float() / 255)
    wanted = answers(plain, pictures)
    with accelerate(plain, f"early-exit(weights='{file}', threshold='never')"):
        assert torch.equal(answers(plain, pictures), wanted)


def test_the_calibration_is_of_the_weights_that_run(tmp_path: Path) -> None:
    """Weights are rounded to be stored; thresholds are promises about the rounded ones."""
    task, file = trained(tmp_path / "run", frozen=False)
    model = load("cifar10-vit")
    addon = addons.find("early-exit", model, str(file))
    pictures = task.crops.normalised(task.calibration.pixels.float() / 255)
    exits, _, final = addon.tensors["calibration.logits"].float()
    assert torch.equal(addon.tensors["calibration.labels"].long(), task.calibration.labels)
    for threshold, wanted in (((2.0, 2.0), final), ((0.0, 2.0), exits)):
        with accelerate(model, f"early-exit(weights='{file}', threshold={threshold})"):
            torch.testing.assert_close(answers(model, pictures), wanted, rtol=2e-3, atol=1e-3)  # stored in half precision


def test_the_loss_by_hand() -> None:
    generator = torch.Generator().manual_seed(0)
    one, two, final = torch.randn(3, 4, 5, generator=generator)
    labels, soft = torch.tensor([0, 1, 2, 3]), torch.rand(4, 5, generator=generator).softmax(1)

    def supervised(logits: torch.Tensor) -> torch.Tensor:
        divergence = (soft * (soft.log() - logits.log_softmax(1))).sum(1).mean()
        return (functional.cross_entropy(logits, labels) + divergence) / 2

    own = (final / 2).softmax(1)
    wanted = supervised(final)
    for logits in (one, two):
        imitation = 4 * (own * (own.log() - (logits / 2).log_softmax(1))).sum(1).mean()
        wanted = wanted + (0.7 * supervised(logits) + 0.3 * imitation) / 2
    torch.testing.assert_close(multi_exit_loss([one, two], final, labels, soft), wanted)


def test_exits_imitate_but_do_not_pull_the_final_classifier() -> None:
    final, exit_ = torch.randn(3, 5, requires_grad=True), torch.randn(3, 5, requires_grad=True)
    labels, soft = torch.tensor([0, 1, 2]), torch.full((3, 5), 0.2)
    (alone,) = torch.autograd.grad(multi_exit_loss([], final, labels, soft), final)
    (beside,) = torch.autograd.grad(multi_exit_loss([exit_], final, labels, soft), final)
    torch.testing.assert_close(beside, alone)


@pytest.mark.parametrize("epochs", [1, 3])
def test_the_default_is_whole_epochs(epochs: int) -> None:
    config = default_config(epochs)
    assert config.steps * config.batch_size == epochs * 45_000


def test_the_trained_network_is_the_one_that_runs(tmp_path: Path) -> None:
    """What the training sees at an exit is what inference sees there."""
    vit, pictures = tiny("plain"), images(4)
    network = MultiExit(vit, ((1, "local"),)).eval()
    tensors = {f"head.1.{name}": value for name, value in network.heads[0].state_dict().items()}
    tensors |= {"calibration.logits": torch.zeros(2, 1, 10), "calibration.labels": torch.zeros(1, dtype=torch.uint8)}
    addons.save(tmp_path / "a.safetensors", tensors, method="early-exit", model=vit, facts={"exits": [[1, "local"]]})
    with torch.no_grad():
        exits, final = network(pictures)
    with accelerate(vit, f"early-exit(weights='{tmp_path / 'a.safetensors'}', threshold=0.0)"):
        torch.testing.assert_close(answers(vit, pictures), exits)
    torch.testing.assert_close(answers(vit, pictures), final)
