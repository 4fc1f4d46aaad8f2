"""The parts of LightViT (lightvit.py): attention in windows with global tokens, the gated feed-forward layer, and merging of patches.

Paper    Huang et al. 2022, arXiv:2207.05557.
Shapes   B images, C channels, H x W the grid of a stage, G global tokens before N = H W tokens of the image, h heads of d channels,
         n places of a window.
"""

from __future__ import annotations

import torch
from timm.layers import DropPath, trunc_normal_
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["EPS", "Block", "Grid", "PatchMerging"]

Grid = tuple[int, int]
EPS = 1e-6
_WINDOW = 7


class Attention(nn.Module):
    """Attention in windows, plus what global tokens gather from the image and spread over it."""

    offsets: Tensor

    def __init__(self, dim: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.tokens = tokens
        self.qkv = nn.Linear(dim, 3 * dim)
        self.spread = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * _WINDOW - 1) ** 2, heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("offsets", _offsets(), persistent=False)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """B x (G + N) x C to the same."""
        q, k, v = self._split(self.qkv(x), 3)
        image_q, image_k, image_v = (part[:, :, self.tokens :] for part in (q, k, v))
        gathered = _joined(F.scaled_dot_product_attention(q[:, :, : self.tokens], image_k, image_v))
        far_k, far_v = self._split(self.spread(gathered), 2)
        far = _joined(F.scaled_dot_product_attention(image_q, far_k, far_v))
        image = self._near(image_q, image_k, image_v, grid) + far
        return self.proj(torch.cat((gathered, image), dim=1))  # type: ignore[no-any-return]

    def _split(self, x: Tensor, parts: int) -> list[Tensor]:
        return list(x.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4))  # each B x h x tokens x d

    def _near(self, q: Tensor, k: Tensor, v: Tensor, grid: Grid) -> Tensor:
        window = (_side(grid[0]), _side(grid[1]))
        bias = self._bias(window, grid, q.shape[0]).to(q.dtype)
        q, k, v = (_windows(part, grid, window) for part in (q, k, v))
        return _whole(_joined(F.scaled_dot_product_attention(q, k, v, attn_mask=bias)), grid, window)

    def _bias(self, window: Grid, grid: Grid, batch: int) -> Tensor:
        """What is added to the scores: 1 x h x n x n of a window's n places; windows x h x n x n if some of them are beyond the grid."""
        n = window[0] * window[1]
        within = self.offsets[: window[0], : window[1], : window[0], : window[1]].reshape(-1)
        bias = self.relative_position_bias_table[within].view(1, n, n, self.heads).permute(0, 3, 1, 2)
        if grid[0] % window[0] == 0 and grid[1] % window[1] == 0:
            return bias
        inside = _windows(bias.new_ones(1, 1, grid[0] * grid[1], 1), grid, window)  # windows x 1 x n x 1
        beyond = torch.zeros_like(inside).masked_fill(inside == 0, float("-inf")).transpose(2, 3)
        return (bias + beyond).expand(batch, -1, -1, -1, -1).flatten(0, 1)


class BidimensionalAttention(nn.Module):
    """Gates of the FFN's output: by channel and by token."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        reduced = dim // 4
        self.norm = nn.LayerNorm(dim)
        self.mean_reduce = nn.Linear(dim, reduced)
        self.token_reduce = nn.Linear(dim, reduced)
        self.channel = nn.Linear(reduced, dim)
        self.spatial = nn.Linear(2 * reduced, 1)

    def forward(self, x: Tensor) -> Tensor:
        """B x (G + N) x C to the same."""
        y = self.norm(x)
        mean = F.gelu(self.mean_reduce(y.mean(dim=1, keepdim=True)))
        each = F.gelu(self.token_reduce(y))
        by_channel = self.channel(mean).sigmoid()  # B x 1 x C
        by_token = self.spatial(torch.cat((each, mean.expand_as(each)), dim=-1)).sigmoid()  # B x (G + N) x 1
        return x * by_channel * by_token  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention, then the feed-forward layer, each a residual."""

    def __init__(self, dim: int, heads: int, tokens: int, expansion: float, drop_path: float) -> None:
        super().__init__()
        hidden = int(dim * expansion)
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads, tokens)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim), BidimensionalAttention(dim))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """B x (G + N) x C to the same."""
        x = x + self.drop_path(self.attn(self.norm1(x), grid))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """2 x 2 tokens become one, from the four together and, a residual, from the largest of the four in each channel."""

    def __init__(self, before: int, dim: int, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.norm = nn.LayerNorm(4 * before)
        self.reduction = nn.Linear(4 * before, dim, bias=False)
        self.residual = nn.Linear(before, dim, bias=False)
        self.global_norm = nn.LayerNorm(before)
        self.global_reduction = nn.Linear(before, dim, bias=False)

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """B x (G + 4 N) x C' to B x (G + N) x C; `grid` is that of the input."""
        height, width = grid
        fours = x[:, self.tokens :].unflatten(1, (height // 2, 2, width // 2, 2)).transpose(2, 3).flatten(1, 2).flatten(2, 3)  # B N 4 C'
        image = self.reduction(self.norm(fours.flatten(2))) + self.residual(fours.amax(dim=2))
        return torch.cat((self.global_reduction(self.global_norm(x[:, : self.tokens])), image), dim=1)


def _side(length: int) -> int:
    """Side of the windows, 7 at most, of which the fewest cover `length`; none of them lies beyond it."""
    return -(-length // -(-length // _WINDOW))


def _offsets() -> Tensor:
    """Rows of the bias table: [i, j, k, l] for a query at (i, j) and a key at (k, l) of a window."""
    place = torch.arange(_WINDOW)
    apart = place[:, None] - place[None, :] + _WINDOW - 1  # query x key
    return apart[:, None, :, None] * (2 * _WINDOW - 1) + apart[None, :, None, :]


def _windows(x: Tensor, grid: Grid, window: Grid) -> Tensor:
    """B x h x N x d to (B windows) x h x n x d, n the places of a window; those beyond the grid are zeros."""
    rows, columns = -(-grid[0] // window[0]), -(-grid[1] // window[1])
    x = x.unflatten(2, grid)
    if (beyond := (columns * window[1] - grid[1], rows * window[0] - grid[0])) != (0, 0):
        x = F.pad(x, (0, 0, 0, beyond[0], 0, beyond[1]))
    x = x.unflatten(3, (columns, window[1])).unflatten(2, (rows, window[0]))  # B x h x rows x n1 x columns x n2 x d
    return x.permute(0, 2, 4, 1, 3, 5, 6).flatten(4, 5).flatten(0, 2)


def _whole(x: Tensor, grid: Grid, window: Grid) -> Tensor:
    """Puts windows together: (B windows) x n x C to B x N x C."""
    rows, columns = -(-grid[0] // window[0]), -(-grid[1] // window[1])
    x = x.unflatten(1, window).unflatten(0, (-1, rows, columns)).transpose(2, 3)  # B x rows x n1 x columns x n2 x C
    return x.flatten(3, 4).flatten(1, 2)[:, : grid[0], : grid[1]].flatten(1, 2)


def _joined(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # B x h x tokens x d to B x tokens x C
