"""What became of a picture's tokens, drawn onto it: merged patches in their mean colour with a line around them, dropped ones dimmed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from vis_accel.token_pruning.trace import Trace

__all__ = ["Stage", "drawn", "groups"]

SHOWN = 6  # stages at most
_SIDE = 384  # pixels: about how wide a drawing is
_LINE = torch.tensor([255, 255, 255], dtype=torch.uint8)


class Stage(NamedTuple):
    """The tokens after one block.

    Attributes:
        block: 0-based.
        tokens, start: how many there are, and were at the start, class token included.
        dropped: patches that no token stands for any more.
        picture: the drawing, uint8, 3 x H x W.
    """

    block: int
    tokens: int
    start: int
    dropped: int
    picture: Tensor

    @property
    def caption(self) -> str:
        """In words."""
        lost = f", {self.dropped} patches dropped" if self.dropped else ""
        return f"after block {self.block}: {self.tokens} of {self.start} tokens{lost}"


def groups(source: Tensor, prefix: int) -> Tensor:
    """For each patch of the start, the token that stands for it, -1 for none: (N0 - prefix) int64, of the rows of a trace (N x N0)."""
    patches = source[:, prefix:]
    there, token = patches.max(dim=0)
    return torch.where(there > 0, token, -1)


def drawn(traces: Mapping[int, Trace], picture: Tensor, grid: tuple[int, int], prefix: int) -> tuple[Stage, ...]:
    """The stages at which the tokens change, at most six of them, the first and the last among them.

    Args:
        traces: of one image, by block.
        picture: what the network saw, uint8, 3 x H x W.
        grid: patches down and across.
        prefix: tokens that stand for no patch.
    """
    found, before = [], -1
    for block, trace in traces.items():
        tokens, start = int(trace.number[0]), trace.source.shape[2]
        if tokens not in (before, start):
            found.append((block, tokens, groups(trace.source[0], prefix), start))
        before = tokens
    if len(found) > SHOWN:
        found = [found[round(index * (len(found) - 1) / (SHOWN - 1))] for index in range(SHOWN)]
    return tuple(
        Stage(block, tokens, start, int((owner < 0).sum()), _drawing(picture, owner, grid)) for block, tokens, owner, start in found
    )


def _drawing(picture: Tensor, owner: Tensor, grid: tuple[int, int]) -> Tensor:
    down, across = grid
    scale = max(1, _SIDE // max(picture.shape[-2:]))
    large = picture.repeat_interleave(scale, dim=1).repeat_interleave(scale, dim=2).float()
    rows = torch.arange(large.shape[1]) * down // large.shape[1]
    columns = torch.arange(large.shape[2]) * across // large.shape[2]
    place = owner.reshape(down, across)[rows][:, columns]  # the token of each pixel
    for token in owner.unique().tolist():
        here = place == token
        if token < 0:
            large[:, here] = large[:, here] * 0.12 + 24
        elif int((owner == token).sum()) > 1:
            large[:, here] = large[:, here].mean(dim=1, keepdim=True)
    edge = torch.zeros_like(place, dtype=torch.bool)
    edge[:, 1:] |= place[:, 1:] != place[:, :-1]
    edge[1:] |= place[1:] != place[:-1]
    large[:, edge] = large[:, edge] * 0.35 + _LINE[:, None] * 0.65
    return large.round().to(torch.uint8)
