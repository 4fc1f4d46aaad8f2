"""Which patches ended where: what a model under a recipe on tokens made of one batch.

    with accelerate(model, "tome(r=8)"):
        found = trace(model, images)
    found.source[0] @ grid        each row: the patches that a token of the last block stands for

`source^T` brings values of the last tokens back onto the grid ("un-merging"), for pictures and for dense tasks.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vis_accel.errors import NoEffectError
from vis_accel.vit_models.stream import Tokens, Wrapped

__all__ = ["Trace", "trace", "trace_blocks"]


class Trace(NamedTuple):
    """The end of a forward.

    Attributes:
        source: B x N x N0, 1 where token n0 of the start is part of token n of the last block; the row of a fused token is empty.
        size: B x N, how many tokens each stands for.
        x: B x N x C, the tokens after the last block.
        number: B int64, how many there are, without padding that fills a batch up.
    """

    source: Tensor
    size: Tensor
    x: Tensor
    number: Tensor


def trace(model: nn.Module, images: Tensor) -> Trace:
    """Runs `model`, which is under a recipe on tokens, on normalised images and follows its tokens to the end.

    Raises:
        NoEffectError: no block of the model drops or merges tokens, or the last one does not follow them.
    """
    found = trace_blocks(model, images)
    last = len(model.blocks) - 1  # type: ignore[arg-type]
    if last not in found:
        raise NoEffectError("The last block does not follow its tokens: it computes only what the head reads.")
    return found[last]


@torch.no_grad()
def trace_blocks(model: nn.Module, images: Tensor) -> dict[int, Trace]:
    """As `trace`, after each block (0-based) that follows its tokens, from the first that drops or merges any.

    Raises:
        NoEffectError: no block of the model drops or merges tokens.
    """
    blocks: list[Any] = list(model.blocks)  # type: ignore[arg-type]
    first = next((index for index, block in enumerate(blocks) if isinstance(vars(block).get("forward"), Wrapped)), None)
    if first is None:
        raise NoEffectError("No block of this model drops or merges tokens: there is nothing to trace.")
    seen: dict[int, Tokens] = {}

    def begin(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        return (Tokens(x, source=torch.eye(x.shape[1], device=x.device).expand(len(x), -1, -1)), *args[1:])

    def after(module: nn.Module, args: tuple[Any, ...], result: Tensor | Tokens) -> Tensor | Tokens:
        if not isinstance(result, Tokens) or result.source is None:
            return result
        seen[blocks.index(module)] = result
        if module is not blocks[-1]:
            return result
        rest = result._replace(source=None)
        return rest.x if rest.stateless or vars(module)["forward"].ends else rest

    hooks = [blocks[first].register_forward_pre_hook(begin), *(block.register_forward_hook(after) for block in blocks[first:])]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return {block: _trace(tokens, tokens.source) for block, tokens in seen.items() if tokens.source is not None}


def _trace(tokens: Tokens, source: Tensor) -> Trace:
    count = torch.full((len(source),), source.shape[1]) if tokens.size is None else (tokens.size > 0).sum(dim=1)
    return Trace(source, source.sum(dim=-1) if tokens.size is None else tokens.size, tokens.x, count)
