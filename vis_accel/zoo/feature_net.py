"""The convolutional classifier whose penultimate layer is the feature space of the offline FID.

A small residual network in the manner of "How to train your ResNet" (Page 2018): three stages of convolution, pooling and one residual
block; 1.0 M parameters, 93 MMACs for a 32x32 image. Its 64 features are standardised by the last batch normalisation (no affine part, no
rectifier), so each has unit variance on the training images and the Frechet distance weighs them alike.

Shapes   images B x 3 x 32 x 32 in [0, 1]; features B x 64; logits B x 10.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ConvClassifier"]


class ConvClassifier(nn.Module):
    """Residual classifier with `num_features` numbers before its head.

    Args:
        classes: number of classes.
        widths: channels of the stem and of the three stages.
        num_features: width of the feature space.
        mean, std: statistics of the training images per channel, in [0, 1]; part of the network, so an image needs no other preparation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        classes: int = 10,
        widths: tuple[int, int, int, int] = (32, 64, 128, 144),
        num_features: int = 64,
        mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465),
        std: tuple[float, float, float] = (0.247, 0.2435, 0.2616),
    ) -> None:
        super().__init__()
        self.num_features = num_features
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))
        stem, *stages = widths
        self.stem = _convolution(3, stem)
        self.stages = nn.Sequential(*(_stage(a, b) for a, b in zip(widths, stages)))  # noqa: B905 (widths has one more, on purpose)
        self.project = nn.Linear(stages[-1], num_features, bias=False)
        self.standardise = nn.BatchNorm1d(num_features, affine=False)
        self.head = nn.Linear(num_features, classes)

    def forward_features(self, images: Tensor) -> Tensor:
        """Maps images (B x 3 x H x W in [0, 1]) to features (B x num_features)."""
        x = self.stages(self.stem((images - self.mean) / self.std))
        features: Tensor = self.standardise(self.project(x.mean(dim=(2, 3))))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B x 3 x H x W in [0, 1]) to logits (B x classes)."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


def _convolution(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


def _stage(inside: int, outside: int) -> nn.Sequential:
    residual = _Residual(nn.Sequential(_convolution(outside, outside), _convolution(outside, outside)))
    return nn.Sequential(_convolution(inside, outside), nn.MaxPool2d(2), residual)
