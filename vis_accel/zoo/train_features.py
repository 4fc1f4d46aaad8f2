"""Recipe `cifar10-features`: the classifier behind the offline FID, trained from scratch with crops, flips and cutout."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel.training import TrainingConfig
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.feature_net import ConvClassifier

__all__ = ["FeaturesTask", "default_config"]

_PAD, _CUTOUT = 4, 8  # pixels


def default_config(epochs: int = 15) -> TrainingConfig:
    """One-cycle SGD, about 25 minutes on 2 cores."""
    return TrainingConfig(
        steps=epochs * (45_000 // 256), batch_size=256, learning_rate=0.2, optimizer="sgd", weight_decay=5e-4, warmup=0.2, decay=0.8,
        ema_decay=0.998, clip=None, channels_last=True, compile=False, evaluate_every=3 * (45_000 // 256),
    )  # fmt: skip


class FeaturesTask:
    """Cross entropy with label smoothing on augmented images."""

    name = "cifar10-features"

    def __init__(self, train: Images, test: Images) -> None:
        torch.manual_seed(0)
        self.model = ConvClassifier()
        self.train, self.test = train, test
        self.examples = len(train)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = augment(self.train.pixels[indices].float() / 255, generator)
        return images.contiguous(memory_format=torch.channels_last), self.train.labels[indices]

    def loss(self, model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(images).float(), labels, label_smoothing=0.1)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        right = 0
        for pixels, labels in zip(self.test.pixels.split(500), self.test.labels.split(500), strict=True):
            right += int((model(pixels.float() / 255).argmax(1) == labels).sum())
        return {"top1": right / len(self.test)}

    def export(self, model: nn.Module, folder: Path) -> None:
        from vis_accel.zoo.export import save_module

        save_module(model, folder / "model.safetensors")


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crop of the image padded by reflection, random flip, and a grey square at a random place; B x 3 x H x W in [0, 1]."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (_PAD,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * _PAD + 1, (2, count), generator=generator)
    flip = torch.rand(count, generator=generator) < 0.5
    rows = top[:, None] + torch.arange(height)
    columns = torch.arange(width).expand(count, width)
    columns = left[:, None] + torch.where(flip[:, None], width - 1 - columns, columns)
    cropped = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    y, x = torch.randint(0, height, (2, count, 1, 1), generator=generator)
    hole_rows = (torch.arange(height)[None, :, None] - y).abs() < _CUTOUT // 2
    hole_columns = (torch.arange(width)[None, None, :] - x).abs() < _CUTOUT // 2
    return torch.where((hole_rows & hole_columns)[:, None], 0.47, cropped)
