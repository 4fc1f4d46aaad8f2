"""Top-K: patches the class token does not look at are dropped at a few stages.

Paper    the strong baseline of Haurum et al. 2023, "Which Tokens to Use?", arXiv:2308.04657: EViT (arXiv:2202.07800) without
         its fused token.
Cost     one product of the class token's query with the keys, a sort, a gather, at each stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vis_accel.token_pruning.ranking import RankingMethod

__all__ = ["Topk"]


@dataclass(frozen=True, kw_only=True)
class Topk(RankingMethod):
    """Drops the patches with the least class attention."""

    name: ClassVar[str] = "topk"

    def rest(self, tokens: Tensor, scores: Tensor) -> Tensor | None:
        return None
