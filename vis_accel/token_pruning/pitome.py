"""PiToMe: as ToMe, but patches of their own kind are protected; only those from large groups of similar ones are merged.

Paper    Tran et al. 2024, "Accelerating Transformers with Spectrum-Preserving Token Merging", arXiv:2405.16148. Energy of patch i: the mean
         over the others of f(cos(k_i, k_j) - m), f(t) = t for t > 0 and exp(t) - 1 below; the margin m falls from 0.9 to 0 over the blocks
         (formulas recalled, held against no reference run).
Step     the 2r patches of highest energy, alternately into A and B; every a is merged into its most similar b.
Cost     the similarity of all pairs of patches, four times ToMe's: 2 N^2 d multiply-adds more a block.
Departs  a fixed number r a block instead of a ratio; proportional attention, which the paper's timm code leaves out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from vis_accel.token_pruning.matching import Matching, similarity
from vis_accel.token_pruning.tome import MergingMethod
from vis_accel.vit_models.stream import take

__all__ = ["Pitome", "energy"]

_MARGIN = 0.9  # of the first block


def energy(cosines: Tensor, margin: float) -> Tensor:
    """How large and near the group around each patch is: B x n, from cosines B x n x n."""
    n = cosines.shape[-1]
    others = 1 - torch.eye(n, device=cosines.device, dtype=cosines.dtype)
    return (functional.elu(cosines - margin) * others).sum(dim=-1) / max(1, n - 1)


@dataclass(frozen=True, kw_only=True)
class Pitome(MergingMethod):
    """Merges r patches out of the largest groups of similar ones."""

    name: ClassVar[str] = "pitome"

    def choose(self, metric: Tensor, r: int, depth: float) -> tuple[Tensor, Tensor, Matching]:
        every = torch.arange(metric.shape[1], device=metric.device)[None]
        cosines = similarity(metric, every, every)
        order = energy(cosines, _MARGIN * (1 - depth)).argsort(dim=-1, descending=True, stable=True)
        sources, b = order[:, : 2 * r : 2], order[:, 1 : 2 * r : 2]
        protected = order[:, 2 * r :].sort(dim=-1).values
        into = take(cosines, sources).gather(2, b[:, None].expand(-1, r, -1)).argmax(dim=-1)
        left = torch.arange(protected.shape[1], device=metric.device).expand(metric.shape[0], -1)
        moved = torch.arange(protected.shape[1], protected.shape[1] + r, device=metric.device).expand(metric.shape[0], -1)
        return torch.cat((protected, sources), dim=1), b, Matching(left, moved, into)
