"""Keeping the patches that the class token looks at: what EViT, Top-K and their relatives share.

At each stage, between attention and MLP of one block, patches are ranked by the attention of the class token to them, averaged over
heads (and over class and distillation token where there are two); the best ceil(keep x patches) stay, in their order. What becomes of the
others is the subclass's business (`rest`).

Shapes   batch B; N tokens, P of them prefix; scores B x (N - P).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from vis_accel.method import option
from vis_accel.token_pruning import schedule
from vis_accel.token_pruning.base import FixedCountMethod, vit_view
from vis_accel.token_pruning.tome import placed
from vis_accel.vit_models.attention import class_attention
from vis_accel.vit_models.stream import Step, Tokens, take
from vis_accel.vit_models.view import BlockView, ViTView

__all__ = ["RankingMethod", "best", "keep_patches"]


def best(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices of the `count` highest of B x n scores and of the others, both ascending."""
    order = scores.argsort(dim=-1, descending=True, stable=True)
    return order[:, :count].sort(dim=-1).values, order[:, count:].sort(dim=-1).values


def keep_patches(tokens: Tokens, index: Tensor, prefix: int, extra: Tensor | None = None) -> Tokens:
    """The prefix, the patches `index` (B x M), and `extra` tokens (B x E x C) behind them."""
    x = torch.cat((tokens.x[:, :prefix], take(tokens.x, index + prefix), *([] if extra is None else [extra])), dim=1)
    place = None if tokens.place is None else take(tokens.place, index)
    source = tokens.source
    if source is not None:
        blank = [] if extra is None else [source.new_zeros(len(source), extra.shape[1], source.shape[2])]
        source = torch.cat((source[:, :prefix], take(source, index + prefix), *blank), dim=1)
    return Tokens(x, None, place, source)


@dataclass(frozen=True, kw_only=True)
class RankingMethod(FixedCountMethod):
    """Keeps the best patches at a few stages."""

    needs: ClassVar[frozenset[str]] = frozenset({"all tokens", "class token"})
    extra: ClassVar[int] = 0  # tokens that a stage adds for those it drops

    keep: float = option(0.7, "the share of the patches that stay at each stage", above=0, high=1)
    stages: tuple[int, ...] | None = option(
        None, "the blocks (0-based) that drop patches, between attention and MLP; None: after a quarter, a half and three quarters", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages is not None and (not self.stages or list(self.stages) != sorted(set(self.stages))):
            raise self.refused("stages", "must name at least one block, each once, in order")

    def check_target(self, view: Any) -> None:
        if "class token" in self.needs:
            vit_view(self, view).require_class_token(self.name)
        super().check_target(view)

    def blocks(self, view: ViTView) -> tuple[int, ...]:
        """The stages on this model."""
        depth = len(view.blocks)
        if self.stages is None:
            return tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))
        schedule.stages_fit(self.stages, depth, self.name)
        return self.stages

    def counts(self, view: ViTView) -> tuple[int, ...]:
        patches, stages, found = view.patches, self.blocks(view), []
        for block in range(len(view.blocks)):
            if block in stages:
                patches = self.after(patches)
            found.append(view.prefix + patches)
        return tuple(found)

    def after(self, patches: int) -> int:
        """Number of patches, and of tokens for dropped ones, after a stage."""
        count = schedule.kept(patches, self.keep)
        return patches if count == patches else count + self.extra

    def steps(self, view: ViTView) -> dict[int, Step]:
        before = (view.prefix + view.patches, *self.counts(view))
        rows = max(1, view.readers)
        return {block: partial(self._step, view.prefix, rows) for block in self.blocks(view) if before[block + 1] != before[block]}

    @abstractmethod
    def rest(self, tokens: Tensor, scores: Tensor) -> Tensor | None:
        """What stands for the dropped patches (B x M x C, scores B x M): B x `extra` x C, or None."""

    def _step(self, prefix: int, rows: int, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Tokens:
        attended = block.attention(tokens.x, rope=rope)
        scores = class_attention(attended.q, attended.k, rows=rows, scale=block.scale)[:, prefix:]
        tokens = placed(tokens._replace(x=attended.x), prefix, rope)
        with torch.no_grad():
            index, dropped = best(scores, schedule.kept(scores.shape[1], self.keep))
        extra = self.rest(take(tokens.x, dropped + prefix), take(scores, dropped)) if self.extra else None
        tokens = keep_patches(tokens, index, prefix, extra)
        return tokens._replace(x=block.feed(tokens.x))
