"""Recipe `cifar10-features`: the classifier behind the offline FID, trained from scratch.

Optimiser  Muon (Jordan et al. 2024): momentum whose matrices are orthogonalised by five Newton-Schulz iterations; AdamW for the vectors.
Examples   crops, flips and a cutout of 7 x 7 pixels, labels smoothed by 0.2.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel.training import TrainingConfig
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.feature_net import ConvClassifier, whitening_filters

__all__ = ["FeaturesTask", "augment", "default_config"]

_PAD, _CUTOUT = 4, 8  # pixels
_BATCH = 500
_SMOOTHING = 0.2
_WHITENED_WITH = 5_000  # images


def default_config(epochs: int = 24) -> TrainingConfig:
    """About an hour on one core."""
    per_epoch = 45_000 // _BATCH
    return TrainingConfig(
        steps=epochs * per_epoch, batch_size=_BATCH, learning_rate=6e-3, optimizer="muon", weight_decay=0.05, warmup=0.1, decay=0.9,
        ema_decay=0.99, clip=None, channels_last=True, compile=False, evaluate_every=3 * per_epoch,
    )  # fmt: skip


class FeaturesTask:
    """Cross entropy on augmented images.

    Args:
        train, test: the images.
    """

    name = "cifar10-features"

    def __init__(self, train: Images, test: Images) -> None:
        torch.manual_seed(0)
        self.model = ConvClassifier()
        some = train.pixels[torch.randperm(len(train))[:_WHITENED_WITH]].float() / 255
        self.model.filters.copy_(whitening_filters((some - self.model.mean) / self.model.std))
        self.train, self.test = train, test
        self.examples = len(train)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = augment(self.train.pixels[indices].float() / 255, generator, cutout=_CUTOUT)
        return images.contiguous(memory_format=torch.channels_last), self.train.labels[indices]

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(model(images).float(), labels, label_smoothing=_SMOOTHING)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        right, device = 0, next(model.parameters()).device
        for pixels, labels in zip(self.test.pixels.split(500), self.test.labels.split(500), strict=True):
            right += int((model(pixels.to(device).float() / 255).argmax(1).cpu() == labels).sum())
        return {"top1": right / len(self.test)}

    def export(self, model: nn.Module, folder: Path) -> None:
        from vis_accel.zoo.export import save_module

        save_module(model, folder / "model.safetensors")


def augment(images: Tensor, generator: torch.Generator, *, cutout: int) -> Tensor:
    """Random crop after padding by reflection, random flip, a grey square of side `cutout` - 1 around a pixel anywhere.

    Args:
        images: B x 3 x H x W in [0, 1].
        generator: of the random numbers.
        cutout: one more than the side of the square; 0: no square.
    """
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
