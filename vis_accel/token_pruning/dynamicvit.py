"""DynamicViT: small trained predictors say before a few blocks which patches stay.

Paper    Rao et al. 2021, "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification", arXiv:2106.02034. Predictor, masked
         training with hard Gumbel-softmax bits, loss of the kept share. Inference: the floor(P keep^s) patches with the highest
         probability to stay after stage s = 1, 2, 3, a fixed number, so images of a batch keep equal counts.
Cost     a predictor is about 1.7 C^2 multiply-adds a patch, a seventh of a block's; training computes every patch (masked), so it is no
         faster than without.
Departs  the last softmax ranks; `train_dynamicvit` says what of the network is trained along.
Not      evit and topk, which need no predictor: at equal multiply-adds no clear winner is known.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vis_accel.method import Touch, option
from vis_accel.token_pruning.selection import SelectingMethod
from vis_accel.vit_models.view import ViTView

__all__ = ["Dynamicvit", "kept_counts"]


def kept_counts(patches: int, keep: float, stages: int) -> list[int]:
    """floor(patches keep^s) for s = 1 .. stages, at least one; rounding errors of the power do not count."""
    return [max(1, math.floor(round(patches * keep**s, 6))) for s in range(1, stages + 1)]


@dataclass(frozen=True, kw_only=True)
class Dynamicvit(SelectingMethod):
    """Keeps the patches that trained predictors choose."""

    name: ClassVar[str] = "dynamicvit"
    needs: ClassVar[frozenset[str]] = frozenset({"all tokens"})
    touches: ClassVar[tuple[Touch, ...]] = (Touch("tokens", "replaces"), Touch("weights", "replaces"))

    stages: tuple[int, ...] | None = option(
        None, "the blocks (0-based) before which patches are dropped; None: after a quarter, a half and three quarters", low=0
    )

    def kept(self, view: ViTView) -> dict[int, int]:
        stages = self.blocks(view)
        return dict(zip(stages, kept_counts(view.patches, self.keep, len(stages)), strict=True))

    def counts(self, view: ViTView) -> tuple[int, ...]:
        patches, kept, found = view.patches, self.kept(view), []
        for block in range(len(view.blocks)):
            patches = kept.get(block, patches)
            found.append(view.prefix + patches)
        return tuple(found)

    def rest(self, tokens: Tensor, scores: Tensor) -> Tensor | None:
        return None
