"""Recipe `cifar10-features`: the classifier behind the offline FID, trained from scratch in two stages.

first     15 epochs of one-cycle SGD with crops, flips, cutout and label smoothing
refine    5 epochs more from the first stage's average, a warm restart at half the rate (Loshchilov & Hutter 2017, arXiv:1608.03983)
          without cutout and smoothing: a network of one million weights fits too little, not too much, in so few epochs
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel.training import TrainingConfig
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.feature_net import ConvClassifier

__all__ = ["FeaturesTask", "default_config", "refine_config"]

_PAD, _CUTOUT = 4, 8  # pixels


def default_config(epochs: int = 15) -> TrainingConfig:
    """One-cycle SGD, about 25 minutes on 2 cores."""
    return TrainingConfig(
        steps=epochs * (45_000 // 256), batch_size=256, learning_rate=0.2, optimizer="sgd", weight_decay=5e-4, warmup=0.2, decay=0.8,
        ema_decay=0.998, clip=None, channels_last=True, compile=False, evaluate_every=3 * (45_000 // 256),
    )  # fmt: skip


def refine_config(epochs: int = 5) -> TrainingConfig:
    """The second stage, a third as long."""
    return replace(default_config(epochs), learning_rate=0.1, warmup=0.05, decay=0.95, seed=1)


class FeaturesTask:
    """Cross entropy on augmented images.

    Args:
        train, test: the images.
        start: weights of the first stage; None: from scratch, with cutout and label smoothing.
    """

    name = "cifar10-features"

    def __init__(self, train: Images, test: Images, start: Path | None = None) -> None:
        from safetensors.torch import load_file

        torch.manual_seed(0)
        self.model = ConvClassifier()
        self.refine = start is not None
        if start is not None:
            self.model.load_state_dict(load_file(start))  # copies into float32
        self.train, self.test = train, test
        self.examples = len(train)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = augment(self.train.pixels[indices].float() / 255, generator, cutout=0 if self.refine else _CUTOUT)
        return images.contiguous(memory_format=torch.channels_last), self.train.labels[indices]

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(model(images).float(), labels, label_smoothing=0.0 if self.refine else 0.1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        right = 0
        for pixels, labels in zip(self.test.pixels.split(500), self.test.labels.split(500), strict=True):
            right += int((model(pixels.float() / 255).argmax(1) == labels).sum())
        return {"top1": right / len(self.test)}

    def export(self, model: nn.Module, folder: Path) -> None:
        from vis_accel.zoo.export import save_module

        save_module(model, folder / "model.safetensors")


def augment(images: Tensor, generator: torch.Generator, *, cutout: int) -> Tensor:
    """Random crop after padding by reflection, random flip, a grey square of side `cutout` anywhere; B x 3 x H x W in [0, 1]."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (_PAD,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * _PAD + 1, (2, count), generator=generator)
    flip = torch.rand(count, generator=generator) < 0.5
    rows = top[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    cropped = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    if not cutout:
        return cropped
    y, x = torch.randint(0, height, (2, count, 1, 1), generator=generator)
    hole_rows = (torch.arange(height)[None, :, None] - y).abs() < cutout // 2
    hole_columns = (torch.arange(width)[None, None, :] - x).abs() < cutout // 2
    return torch.where((hole_rows & hole_columns)[:, None], 0.47, cropped)
