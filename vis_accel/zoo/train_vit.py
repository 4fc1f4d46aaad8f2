"""Recipe `cifar10-vit`: a vision transformer that learns from the bundled feature network as well as from the labels.

Loss     half cross entropy with the labels, half Kullback-Leibler divergence from the teacher's probabilities for the very same crop
         (Hinton et al. 2015, arXiv:1503.02531, temperature 1; same crop: Beyer et al. 2022, arXiv:2106.05237). The teacher was trained
         with smoothed labels, so its probabilities are soft already.
Teacher  the bundled cifar10-features: the same 45,000 images taught it, so nothing of the calibration and test images leaks.
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
from vis_accel.zoo.train_features import augment
from vis_accel.zoo.vit import build_vit

__all__ = ["ViTTask", "default_config"]

_CUTOUT = 8  # pixels
_BATCH = 250


def default_config(epochs: int = 7) -> TrainingConfig:
    """About forty minutes on one core."""
    per_epoch = 45_000 // _BATCH
    return TrainingConfig(
        steps=epochs * per_epoch, batch_size=_BATCH, learning_rate=3e-3, optimizer="muon", weight_decay=0.05, warmup=0.1, decay=0.9,
        ema_decay=0.995, evaluate_every=2 * per_epoch,
    )  # fmt: skip


class ViTTask:
    """Distillation on augmented images.

    Args:
        train, test: the images.
        teacher: maps images (B x 3 x 32 x 32 in [0, 1]) to logits.
    """

    name = "cifar10-vit"

    def __init__(self, train: Images, test: Images, teacher: nn.Module) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = build_vit()
        self.teacher = teacher.eval()
        self.train, self.test = train, test
        self.examples = len(train)
        facts: Any = self.model.pretrained_cfg
        self.mean, self.std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        images = augment(self.train.pixels[indices].float() / 255, generator, cutout=_CUTOUT)
        return images.contiguous(memory_format=torch.channels_last), self.train.labels[indices]

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, labels = batch
        soft = self.taught(images)
        logits = model(self._normalised(images)).float()
        distance = functional.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
        return 0.5 * functional.cross_entropy(logits, labels) + 0.5 * distance

    @torch.no_grad()
    def taught(self, images: Tensor) -> Tensor:
        """The teacher's probabilities (B x classes) for images in [0, 1]."""
        soft: Tensor = self.teacher.to(images.device)(images).float().softmax(1)
        return soft

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean.to(images.device)) / self.std.to(images.device)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        right, device = 0, next(model.parameters()).device
        for pixels, labels in zip(self.test.pixels.split(500), self.test.labels.split(500), strict=True):
            right += int((model(self._normalised(pixels.to(device).float() / 255)).argmax(1).cpu() == labels).sum())
        return {"top1": right / len(self.test)}

    def export(self, model: nn.Module, folder: Path) -> None:
        from vis_accel.zoo.export import save_module

        save_module(model, folder / "model.safetensors")
