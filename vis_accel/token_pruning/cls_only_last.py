"""The last block computes only what the head reads: the class token (and the distillation token).

Source   no paper: nobody reads the other tokens after the last block, so their queries, attention, projection and MLP are left out. Keys
         and values are computed for all. Exact up to rounding, and it needs no training.
Cost     saves about 10 N C^2 + 2 N^2 C of the 12 N C^2 + 2 N^2 C multiply-adds of one block: 6.9% of a DeiT-S, 3.5% of 24 blocks.
Not      for heads that pool patches, nor for feature extraction: the other tokens do not exist afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from vis_accel.errors import NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch
from vis_accel.token_pruning.base import run_lengths, vit_view
from vis_accel.vit_models.attention import log_size_mask
from vis_accel.vit_models.stream import Tokens, run_last_block
from vis_accel.vit_models.view import BlockView, ViTView

__all__ = ["ClsOnlyLast"]


@dataclass(frozen=True, kw_only=True)
class ClsOnlyLast(Method):
    """Runs the last block for the tokens the head reads."""

    name: ClassVar[str] = "cls-only-last"
    family: ClassVar[Family] = "depth"  # after the methods on tokens, whose work in the last block it makes needless
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("last block", "replaces"),)

    def check_target(self, view: Any) -> None:
        found = vit_view(self, view)
        found.require_blocks(self.name)
        if not found.readers:
            raise NotApplicableError(f"{self.name} needs a head that reads the class token; this one pools patches ({found.pooling}).")

    def describe(self, view: ViTView) -> list[str]:
        counts = [view.prefix + view.patches] * (len(view.blocks) - 1) + [view.readers]
        return [f"tokens computed in each block, without other methods: {run_lengths(counts)}"]

    def apply(self, target: Any, context: Context) -> Handle:
        """Wraps the last block."""
        with Handle.building(target, str(self)) as handle:
            run_last_block(handle, context.view, partial(_read_tokens_only, context.view.readers))
        return handle


def _read_tokens_only(readers: int, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Tokens:
    bias = None if tokens.size is None else log_size_mask(tokens.size, tokens.x.dtype)
    return Tokens(block.feed(block.prefix_attention(tokens.x, readers, rope=rope, bias=bias)))
