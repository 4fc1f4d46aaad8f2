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

__all__ = ["Trace", "trace"]


class Trace(NamedTuple):
    """The end of a forward.

    Attributes:
        source: B x N x N0, 1 where token n0 of the start is part of token n of the last block; the row of a fused token is empty.
        size: B x N, how many tokens each stands for.
        x: B x N x C, the tokens after the last block.
    """

    source: Tensor
    size: Tensor
    x: Tensor


@torch.no_grad()
def trace(model: nn.Module, images: Tensor) -> Trace:
    """Runs `model`, which is under a recipe on tokens, on normalised images and follows its tokens.

    Raises:
        NoEffectError: no block of the model drops or merges tokens.
    """
    blocks: list[Any] = list(model.blocks)  # type: ignore[arg-type]
    first = next((block for block in blocks if isinstance(vars(block).get("forward"), Wrapped)), None)
    if first is None:
        raise NoEffectError("No block of this model drops or merges tokens: there is nothing to trace.")
    seen: list[Tokens] = []

    def begin(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        return (Tokens(x, source=torch.eye(x.shape[1], device=x.device).expand(len(x), -1, -1)), *args[1:])

    def end(module: nn.Module, args: tuple[Any, ...], result: Tokens) -> Tensor | Tokens:
        seen.append(result)
        rest = result._replace(source=None)
        return rest.x if rest.stateless or vars(module)["forward"].ends else rest

    hooks = [first.register_forward_pre_hook(begin), blocks[-1].register_forward_hook(end)]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    source = seen[0].source
    if source is None:
        raise NoEffectError("The last block does not follow its tokens: it computes only what the head reads.")
    size = seen[0].size
    return Trace(source, source.sum(dim=-1) if size is None else size, seen[0].x)
