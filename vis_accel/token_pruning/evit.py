"""EViT: patches the class token does not look at are fused into one token at a few stages.

Paper    Liang et al. 2022, "Not All Patches Are What You Need", arXiv:2202.07800. Score: section 3.2, the class token's attention averaged
         over heads. Fused token: eq. 4, sum over the dropped of a_i x_i, with the attention as it is (not renormalised).
Cost     as topk, and a weighted sum of the dropped patches.
Departs  a model with a distillation token averages the rows of both; registers are never dropped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vis_accel.errors import NotApplicableError
from vis_accel.token_pruning.base import vit_view
from vis_accel.token_pruning.ranking import RankingMethod

__all__ = ["Evit", "fused"]


def fused(tokens: Tensor, scores: Tensor) -> Tensor:
    """sum_i a_i x_i of the dropped tokens (B x M x C) with their scores (B x M): B x 1 x C."""
    return scores[:, None].to(tokens.dtype) @ tokens


@dataclass(frozen=True, kw_only=True)
class Evit(RankingMethod):
    """Drops the patches with the least class attention, and carries on their weighted sum."""

    name: ClassVar[str] = "evit"
    extra: ClassVar[int] = 1

    def check_target(self, view: Any) -> None:
        super().check_target(view)
        if vit_view(self, view).rotary:
            raise NotApplicableError(
                f"{self.name} adds a token that has no place for the rotary embedding.", hint=f"topk(keep={self.keep:g})"
            )

    def rest(self, tokens: Tensor, scores: Tensor) -> Tensor | None:
        return fused(tokens, scores)
