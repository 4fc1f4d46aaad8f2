"""Guidance distillation: one network that takes the scale w and gives what two rows and their weighted difference gave.

Paper    Meng et al. 2023, arXiv:2210.03142, Algorithm 1 (first stage): the student at (x, t, w) regresses u + w (c - u) of the teacher, w
         uniform over a range, so that one network serves all scales in it.
Scale    enters by Fourier features and a small network whose last layer begins at zero, as a vector added to each block's time embedding;
         so a student at initialisation is the conditional teacher whatever w is. At one w that vector is a constant, and adding it to the
         bias of the time embedding's last layer gives a network without any new input: the same numbers, in a stock architecture.
Differs  the weight of the loss is 1 in the space of the network's output; the paper's w is diffusers' minus 1.
Shapes   w B; features B x F.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["FEATURES", "ScaleEmbedding", "features", "output_loss"]

FEATURES = 32
_SLOWEST, _FASTEST = 16.0, 1.0  # periods of the features, in units of w


def features(scale: Tensor) -> Tensor:
    """Fourier features of w (B): B x 32, sines and cosines of periods from 16 down to 1."""
    half = FEATURES // 2
    periods = _SLOWEST * (_FASTEST / _SLOWEST) ** (torch.arange(half, device=scale.device) / (half - 1))
    angles = 2 * math.pi * scale.float()[:, None] / periods
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class ScaleEmbedding(nn.Module):
    """From w to a vector for each block.

    Args:
        blocks: how many.
        width: of each vector.
    """

    def __init__(self, blocks: int, width: int) -> None:
        super().__init__()
        self.blocks, self.width = blocks, width
        self.first = nn.Linear(FEATURES, width)
        self.last = nn.Linear(width, blocks * width)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, scale: Tensor) -> Tensor:
        """blocks x B x width of w (B)."""
        vectors: Tensor = self.last(nn.functional.silu(self.first(features(scale))))
        return vectors.reshape(len(scale), self.blocks, self.width).transpose(0, 1)


def output_loss(output: Tensor, wanted: Tensor) -> Tensor:
    """Mean square of each row's difference (B)."""
    loss: Tensor = (output - wanted).square().flatten(1).mean(dim=1)
    return loss
