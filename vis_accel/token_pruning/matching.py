"""Bipartite matching: which patches are merged into which, and the merging itself.

Two sets A and B of patches; every a in A proposes its most similar b; the r proposals with the highest similarity are accepted, and each
accepted a is merged into its b as a mean weighted by sizes (Bolya et al. 2023, arXiv:2210.09461, section 3). Several a may choose one b.

    m = accept(scores, r)               scores: B x |A| x |B|, similarities
    merge(tokens, a, b, m, prefix)      tokens afterwards: prefix, A without the merged (order kept), B

Shapes   batch B; N tokens, the first P of them prefix; indices into the patches (0 .. N - P - 1) as int64 B x n.
Export   sums go through a product with a 0/1 matrix (r x |B|): next to nothing, and unlike scatter-add every runtime has it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from vis_accel.vit_models.stream import Tokens, take

__all__ = ["Matching", "accept", "merge", "similarity", "split_by_parity"]


class Matching(NamedTuple):
    """Accepted proposals: `left` and `moved` index A (they complete each other, both ascending for `left`), `into` indexes B."""

    left: Tensor
    moved: Tensor
    into: Tensor


def split_by_parity(patches: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A and B as every other patch (1 x n each). With one class token these are the sets of the paper."""
    order = torch.arange(patches, device=device)[None]
    return order[:, 1::2], order[:, 0::2]


def similarity(metric: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Cosines between the rows `a` and `b` (B x n or 1 x n) of the metric (B x patches x d): B x |A| x |B|."""
    unit = metric / metric.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    a, b = (index.expand(unit.shape[0], -1) for index in (a, b))
    return take(unit, a) @ take(unit, b).transpose(1, 2)


def accept(scores: Tensor, r: int) -> Matching:
    """The r best proposals of scores B x |A| x |B|."""
    best, choice = scores.max(dim=-1)
    order = best.argsort(dim=-1, descending=True, stable=True)
    moved, left = order[:, :r], order[:, r:].sort(dim=-1).values
    return Matching(left, moved, take(choice, moved))


def merge(tokens: Tokens, a: Tensor, b: Tensor, match: Matching, prefix: int) -> Tokens:
    """The tokens after merging; sizes add up, a merged token keeps the place of its b."""
    x, size = tokens.x, tokens.size if tokens.size is not None else tokens.x.new_ones(tokens.x.shape[:2], dtype=torch.float32)
    a, b = a.expand(x.shape[0], -1), b.expand(x.shape[0], -1)
    moved, left = take(a, match.moved) + prefix, take(a, match.left) + prefix
    target = b + prefix
    sums = (match.into[..., None] == torch.arange(b.shape[1], device=x.device)).to(x.dtype).transpose(1, 2)  # B x |B| x r

    moved_size, target_size = take(size, moved), take(size, target)
    total = target_size + (sums.to(size.dtype) @ moved_size[..., None])[..., 0]
    weighted = take(x, target) * target_size[..., None].to(x.dtype) + sums @ (take(x, moved) * moved_size[..., None].to(x.dtype))
    pooled = weighted / total[..., None].to(x.dtype)

    place = None
    if tokens.place is not None:
        place = torch.cat((take(tokens.place, left - prefix), take(tokens.place, b)), dim=1)
    source = tokens.source
    if source is not None:
        grown = take(source, target) + sums.to(source.dtype) @ take(source, moved)
        source = torch.cat((source[:, :prefix], take(source, left), grown), dim=1)
    return Tokens(
        torch.cat((x[:, :prefix], take(x, left), pooled), dim=1),
        torch.cat((size[:, :prefix], take(size, left), total), dim=1),
        place,
        source,
    )
