"""Classifiers for the tokens of a block in the middle: what an early exit says before the network is done.

Source   the seven designs of Bakhtiarnia et al. 2021, "Multi-Exit Vision Transformer for Dynamic Inference", arXiv:2106.15183, by name
         (layouts recalled, not re-read): mlp, cnn-ignore, cnn-add, cnn-project, vit, mixer, resmlp. And the two of Xu et al. 2023, "LGViT",
         arXiv:2308.00255, section 3.2: local (perception) for shallow blocks, global (aggregation) for deep ones.
Shapes   tokens B x N x C with the class token first and `prefix` tokens before the patches; logits B x classes.
Departs  every head has a LayerNorm of its own; batch norms of the papers are group norms of one group, so that training with a frozen
         backbone, small batches and single images all see the same function.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from vis_accel.errors import UnknownNameError

__all__ = ["HEADS", "ON_GRID", "Head", "build_head"]


class Head(nn.Module, ABC):
    """Base of all heads.

    Args:
        width: channels of a token.
        classes: number of classes.
        grid: rows and columns of patches.
        prefix: tokens before them.
    """

    def __init__(self, width: int, classes: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__()
        self.width, self.grid, self.prefix = width, grid, prefix
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, classes)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.classify(self.pooled(self.norm(tokens)))
        return logits

    @abstractmethod
    def pooled(self, tokens: Tensor) -> Tensor:
        """One vector an image (B x C) from normalised tokens."""

    def as_map(self, patches: Tensor) -> Tensor:
        """Patches (B x rows * columns x C) as a map B x C x rows x columns."""
        return patches.transpose(1, 2).unflatten(2, self.grid)  # type: ignore[no-any-return]


class Mlp(Head):
    """An MLP on the class token: next to free, weak in shallow blocks."""

    def __init__(self, width: int, classes: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__(width, classes, grid, prefix)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU())

    def pooled(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.mlp(tokens[:, 0])
        return out


class _Cnn(Head):
    """A convolution over the patches and their mean; subclasses say where the class token goes."""

    def __init__(self, width: int, classes: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__(width, classes, grid, prefix)
        self.convolution = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False), nn.GroupNorm(1, width), nn.GELU())

    def pooled(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.convolution(self.as_map(self.merged(tokens[:, 0], tokens[:, self.prefix :]))).mean(dim=(2, 3))
        return out

    @abstractmethod
    def merged(self, first: Tensor, patches: Tensor) -> Tensor:
        """Patches (B x n x C) that know of the class token (B x C), or not."""


class CnnIgnore(_Cnn):
    """The class token is left out."""

    def merged(self, first: Tensor, patches: Tensor) -> Tensor:
        return patches


class CnnAdd(_Cnn):
    """The class token is added to every patch."""

    def merged(self, first: Tensor, patches: Tensor) -> Tensor:
        return patches + first[:, None]


class CnnProject(_Cnn):
    """The class token is put beside every patch, and both are projected."""

    def __init__(self, width: int, classes: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__(width, classes, grid, prefix)
        self.project = nn.Linear(2 * width, width)

    def merged(self, first: Tensor, patches: Tensor) -> Tensor:
        out: Tensor = self.project(torch.cat((patches, first[:, None].expand_as(patches)), dim=-1))
        return out


class Vit(Head):
    """One more transformer block; its class token is read."""

    def __init__(self, width: int, classes: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__(width, classes, grid, prefix)
        from timm.models.vision_transformer import Block

        self.block: Callable[[Tensor], Tensor] = Block(width, max(1, width // 64), mlp_ratio=2.0, qkv_bias=True)

    def pooled(self, tokens: Tensor) -> Tensor:
        return self.block(tokens)[:, 0]


class Mixer(Head):
    """One mixer layer: an MLP over the tokens, then one over the channels; the mean is read."""

    def __init__(self, width: int, classes: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__(width, classes, grid, prefix)
        count = prefix + grid[0] * grid[1]
        self.tokens = nn.Sequential(nn.Linear(count, count), nn.GELU(), nn.Linear(count, count))
        self.between = nn.LayerNorm(width)
        self.channels = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def pooled(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.tokens(tokens.transpose(1, 2)).transpose(1, 2)
        tokens = tokens + self.channels(self.between(tokens))
        return tokens.mean(dim=1)


class ResMlp(Head):
    """One ResMLP layer: affine scalings for norms, one linear map over the tokens, an MLP over the channels; the mean is read."""

    def __init__(self, width: int, classes: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__(width, classes, grid, prefix)
        count = prefix + grid[0] * grid[1]
        self.scales = nn.Parameter(torch.ones(2, width))
        self.shifts = nn.Parameter(torch.zeros(2, width))
        self.tokens = nn.Linear(count, count)
        self.channels = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def pooled(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.tokens((tokens * self.scales[0] + self.shifts[0]).transpose(1, 2)).transpose(1, 2)
        tokens = tokens + self.channels(tokens * self.scales[1] + self.shifts[1])
        return tokens.mean(dim=1)


class Local(Head):
    """LGViT's local perception: point-wise, depth-wise 3 x 3, point-wise convolution; the patches' mean plus the class token."""

    def __init__(self, width: int, classes: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__(width, classes, grid, prefix)
        self.convolutions = nn.Sequential(
            nn.Conv2d(width, width, 1, bias=False), nn.GELU(), nn.GroupNorm(1, width),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False), nn.GELU(), nn.GroupNorm(1, width),
            nn.Conv2d(width, width, 1, bias=False), nn.GroupNorm(1, width),
        )  # fmt: skip

    def pooled(self, tokens: Tensor) -> Tensor:
        patches = self.as_map(tokens[:, self.prefix :])
        out: Tensor = (patches + self.convolutions(patches)).mean(dim=(2, 3)) + tokens[:, 0]
        return out


class Global(Head):
    """LGViT's global aggregation: attention among every second patch of every second row; their mean plus the class token."""

    stride = 2

    def __init__(self, width: int, classes: int, grid: tuple[int, int], prefix: int) -> None:
        super().__init__(width, classes, grid, prefix)
        from timm.layers.attention import Attention

        heads = next(count for count in (8, 4, 2, 1) if width % count == 0)
        self.attention: Callable[[Tensor], Tensor] = Attention(width, heads, qkv_bias=True)

    def pooled(self, tokens: Tensor) -> Tensor:
        sampled = self.as_map(tokens[:, self.prefix :])[:, :, :: self.stride, :: self.stride].flatten(2).transpose(1, 2)
        return self.attention(sampled).mean(dim=1) + tokens[:, 0]


HEADS: dict[str, type[Head]] = {
    "mlp": Mlp, "cnn-ignore": CnnIgnore, "cnn-add": CnnAdd, "cnn-project": CnnProject, "vit": Vit, "mixer": Mixer, "resmlp": ResMlp,
    "local": Local, "global": Global,
}  # fmt: skip
ON_GRID = frozenset(HEADS) - {"mlp", "vit"}  # those that need every patch in its place


def build_head(name: str, *, width: int, classes: int, grid: tuple[int, int], prefix: int) -> Head:
    """A fresh head.

    Raises:
        UnknownNameError: no such design.
    """
    if name not in HEADS:
        raise UnknownNameError.of("design of an exit head", name, HEADS)
    return HEADS[name](width, classes, grid, prefix)
