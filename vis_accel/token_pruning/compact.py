"""Batches in which images keep different numbers of tokens: those that stay first, cut to the longest, the rest of it padding.

    index, there = alive_first(alive)       take(x, index) is the batch; there is False where it is padding

At batch 1 nothing is padding, so an image is computed at its own number of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["alive_first", "sizes"]


def alive_first(alive: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the tokens that stay, in their order, for the image that has most of them.

    Args:
        alive: B x n, bool.

    Returns:
        index (B x M, int64), where M is the largest number of True in a row; there (B x M, bool), False where an image has fewer and the
        index is of a token that does not stay.
    """
    count = alive.sum(dim=1)
    most = int(count.max()) if len(count) else 0
    index = (~alive).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
    return index, torch.arange(most, device=alive.device) < count[:, None]


def sizes(there: Tensor, prefix: int) -> Tensor | None:
    """Sizes of the tokens (B x (prefix + M)) when `there` (B x M) says which patches are no padding; None if none is."""
    if bool(there.all()):
        return None
    return torch.cat((there.new_ones(len(there), prefix), there), dim=1).float()
