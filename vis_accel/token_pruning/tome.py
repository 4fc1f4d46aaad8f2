"""ToMe: similar patches are merged in every block, between attention and MLP.

Paper    Bolya et al. 2023, "Token Merging: Your ViT But Faster", arXiv:2210.09461. Similarity: cosine of the keys' mean over heads
         (section 3). Matching: bipartite, by parity. Proportional attention: eq. 1. Training: none needed; fine-tuning recovers more.
Cost     one product of half the patches with the other half, over d features of one head: about 1% of a DeiT-S block.
Departs  all prefix tokens are out of the matching, registers too (the paper knows class and distillation tokens); a head that pools
         patches weighs them by size (the paper's timm code does not).
Not      pruning: nothing is thrown away, the sizes always add up to the number of tokens at the start.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import ClassVar

import torch
from torch import Tensor

from vis_accel.method import option
from vis_accel.token_pruning import schedule, stored
from vis_accel.token_pruning.base import FixedCountMethod
from vis_accel.token_pruning.matching import Matching, accept, merge, similarity, split_by_parity
from vis_accel.vit_models.attention import log_size_mask
from vis_accel.vit_models.stream import Step, Tokens
from vis_accel.vit_models.view import Attended, BlockView, ViTView

__all__ = ["MergingMethod", "Tome", "choose", "placed"]


def choose(metric: Tensor, r: int) -> tuple[Tensor, Tensor, Matching]:
    """Sets A and B and the accepted matching, from a metric B x patches x d."""
    a, b = split_by_parity(metric.shape[1], metric.device)
    return a, b, accept(similarity(metric, a, b), r)


@dataclass(frozen=True, kw_only=True)
class MergingMethod(FixedCountMethod):
    """Merges r patches in each block; a subclass says which."""

    sizes: ClassVar[bool] = True

    r: int | tuple[int, ...] = option(8, "the number of tokens merged away in each block, or one number a block", low=0)
    shape: str = option(
        "constant",
        "how r runs over the blocks: 'rising' from 0 to 2r, 'falling' from 2r to 0, 'searched' for this model",
        choices=(*schedule.SHAPES, "searched"),
    )
    proportional: str = option(
        "mask",
        "how a merged token counts as many in attention: by a mask, by a feature of the keys, or not at all",
        choices=("mask", "feature", "off"),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape != "constant" and not isinstance(self.r, int):
            raise self.refused("shape", "goes with one number r; a list of numbers has its own shape")

    def merged(self, view: ViTView) -> tuple[int, ...]:
        """Number of tokens merged away in each block."""
        if self.shape == "searched" and isinstance(self.r, int):
            numbers = stored.find(view.model, self.name, self.r)
            return schedule.merged(numbers, "constant", depth=len(view.blocks), patches=view.patches, prefix=view.prefix, name=self.name)
        return schedule.merged(self.r, self.shape, depth=len(view.blocks), patches=view.patches, prefix=view.prefix, name=self.name)

    def counts(self, view: ViTView) -> tuple[int, ...]:
        left = accumulate(self.merged(view), lambda count, r: count - r, initial=view.prefix + view.patches)
        return tuple(left)[1:]

    def steps(self, view: ViTView) -> dict[int, Step]:
        numbers = self.merged(view)
        first = next((block for block, r in enumerate(numbers) if r), len(numbers))
        depth = len(numbers)
        return {block: partial(self._step, view.prefix, r, block / max(1, depth - 1)) for block, r in enumerate(numbers) if block >= first}

    @abstractmethod
    def choose(self, metric: Tensor, r: int, depth: float) -> tuple[Tensor, Tensor, Matching]:
        """Which patches to merge, from a metric B x patches x d; `depth` runs from 0 to 1 over the blocks."""

    def _step(self, prefix: int, r: int, depth: float, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Tokens:
        attended = self._attend(block, tokens, rope)
        tokens = tokens._replace(x=attended.x)
        r = min(r, (tokens.x.shape[1] - prefix) // 2)  # fewer patches than planned: dropped in training, or a smaller image
        if r:
            tokens = merge(placed(tokens, prefix, rope), *self._matching(attended, prefix, r, depth), prefix)
        return tokens._replace(x=block.feed(tokens.x))

    def _attend(self, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Attended:
        if tokens.size is None or self.proportional == "off":
            return block.attention(tokens.x, rope=rope)
        if self.proportional == "mask":
            return block.attention(tokens.x, rope=rope, bias=log_size_mask(tokens.size, tokens.x.dtype))
        return block.attention(tokens.x, rope=rope, size=tokens.size)

    @torch.no_grad()  # which to merge is no matter of gradients; the merged values keep theirs
    def _matching(self, attended: Attended, prefix: int, r: int, depth: float) -> tuple[Tensor, Tensor, Matching]:
        return self.choose(attended.k.mean(dim=1)[:, prefix:], r, depth)


@dataclass(frozen=True, kw_only=True)
class Tome(MergingMethod):
    """Merges the r most similar pairs."""

    name: ClassVar[str] = "tome"

    def choose(self, metric: Tensor, r: int, depth: float) -> tuple[Tensor, Tensor, Matching]:
        return choose(metric, r)


def placed(tokens: Tokens, prefix: int, rope: Tensor | None) -> Tokens:
    """Tokens that know which patch they are, where a rotary embedding will ask."""
    if rope is None or tokens.place is not None:
        return tokens
    return tokens._replace(place=torch.arange(tokens.x.shape[1] - prefix, device=tokens.x.device).expand(tokens.x.shape[0], -1))
