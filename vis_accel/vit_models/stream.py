"""How methods run blocks: the state of a forward travels with the tokens, from one wrapped block to the next.

timm hands the output of block i to block i + 1 and to nobody else. A wrapped block that has more to say than the tokens returns
`Tokens`, which the next wrapped block takes. So the state belongs to one forward by construction: nothing lies on the model, threads
cannot meet, and a block that checkpointing runs again is given what it was given the first time.

    run_blocks(handle, view, {3: step, 6: step})         blocks 3 and 6 are run by `step(block, tokens, rope) -> Tokens`

Blocks before the first step are not wrapped at all; later ones without a step run as timm wrote them, with the state handed around them.
Where no state is left to carry, plain tensors travel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vis_accel.errors import ConflictError, NotApplicableError
from vis_accel.handle import Handle
from vis_accel.vit_models.attention import log_size_mask
from vis_accel.vit_models.view import BlockView, ViTView

__all__ = ["Step", "Tokens", "Wrapped", "rope_among", "run_blocks", "run_last_block", "take"]


class Tokens(NamedTuple):
    """What one forward knows besides the tokens.

    Attributes:
        x: B x N x C, prefix tokens first.
        size: B x N float32, how many tokens each stands for, 0 for padding that fills a batch up; None: one each.
        place: B x (N - prefix) int64, the patch whose position each has; None: the grid's order.
        source: B x N x N0, 1 where a token of the start is part of one of now; None: nobody asked.
        carried: what a method hands from one of its blocks to the next.
    """

    x: Tensor
    size: Tensor | None = None
    place: Tensor | None = None
    source: Tensor | None = None
    carried: Any = None

    @property
    def stateless(self) -> bool:
        """Whether there is nothing but the tokens."""
        return self.size is None and self.place is None and self.source is None and self.carried is None


Step = Callable[[BlockView, Tokens, "Tensor | None"], Tokens]


def take(x: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (B x M) of x (B x N x ...) for each image: B x M x ..."""
    rows = torch.arange(x.shape[0], device=x.device)[:, None]
    return x[rows, index]


def run_blocks(handle: Handle, view: ViTView, steps: Mapping[int, Step], *, sizes: bool = False) -> None:
    """Lets `steps` run their blocks, through `handle`.

    Args:
        handle: takes it all off again.
        view: of the model.
        steps: by index of the block, 0-based.
        sizes: whether steps give sizes; then later blocks, and a head that pools over patches, are wrapped to pass them on.

    Raises:
        ConflictError: another recipe already runs these blocks.
    """
    if not steps:
        return
    pooled = sizes and view.pooling in ("avg", "avgmax", "max", "map")
    for block in view.blocks[min(steps) :]:
        if isinstance(vars(block.module).get("forward"), Wrapped):
            raise ConflictError("Another recipe already changes which tokens the blocks of this model see.", hint="remove its handle first")
        ends = block is view.blocks[-1] and not pooled
        handle.swap_forward(block.module, Wrapped(block, steps.get(block.index), ends))
    if pooled:
        _pool_by_size(handle, view)
    handle.swap_item(vars(view.model), "forward_intermediates", _no_grid)


def run_last_block(handle: Handle, view: ViTView, step: Step) -> None:
    """Lets `step` run the last block, whatever ran it before; nothing may come after it but the norm and a head that reads the prefix."""
    block = view.blocks[-1]
    handle.swap_forward(block.module, Wrapped(block, step, ends=True))
    handle.swap_item(vars(view.model), "forward_intermediates", _no_grid)


class Wrapped:
    """One block's forward: its step, or the one it had, with the state handed around it.

    Args:
        block: whose forward it is.
        step: runs it; None: its own forward.
        ends: whether the state ends here, because the head reads tokens alone.
    """

    def __init__(self, block: BlockView, step: Step | None, ends: bool) -> None:
        self.block, self.step, self.ends = block, step, ends
        self.inner = block.module.forward

    def __call__(self, x: Tensor | Tokens, rope: Tensor | None = None, attn_mask: Any = None, is_causal: bool = False) -> Tensor | Tokens:
        if attn_mask is not None or is_causal:
            raise NotApplicableError(
                "A mask was given to a model whose tokens a recipe drops or merges.", hint="remove the recipe's handle"
            )
        tokens = x if isinstance(x, Tokens) else Tokens(x)
        if tokens.place is not None and rope is not None:
            rope = _rope_at(rope, tokens.place)
        if self.step is not None:
            tokens = self.step(self.block, tokens, rope)
        else:
            bias = None if tokens.size is None else log_size_mask(tokens.size, tokens.x.dtype)
            places = {} if rope is None else {"rope": rope}
            tokens = tokens._replace(x=self.inner(tokens.x, attn_mask=bias, **places))
        ends = tokens.stateless or (self.ends and tokens.source is None)  # a source is only there if somebody waits for it
        return tokens.x if ends else tokens


def _rope_at(rope: Tensor, place: Tensor) -> Tensor:
    """The rotary embedding of the patches at `place` (B x M): B x 1 x M x 2d, or B x heads x M x 2d where heads differ."""
    if rope.ndim == 2:
        return rope[place][:, None]
    return rope[:, place].transpose(0, 1)


def rope_among(rope: Tensor, index: Tensor) -> Tensor:
    """The part of the patches `index` (B x M) in the embedding that a step is given: for steps that drop patches before their block."""
    if rope.ndim < 4:  # nothing was dropped so far: one for all images
        return _rope_at(rope, index)
    return rope.gather(2, index[:, None, :, None].expand(-1, rope.shape[1], -1, rope.shape[3]))


def _pool_by_size(handle: Handle, view: ViTView) -> None:
    """Lets the head weigh each token by its size: the mean over merged tokens is then the mean over those they stand for."""
    model, norm, pool = view.model, view.model.norm.forward, view.model.pool
    prefix = 0 if getattr(model, "pool_include_prefix", False) else view.prefix

    def normed(x: Tensor | Tokens) -> Tensor | Tokens:
        return x._replace(x=norm(x.x)) if isinstance(x, Tokens) else norm(x)

    def pooled(x: Tensor | Tokens, pool_type: str | None = None) -> Tensor:
        if not isinstance(x, Tokens):
            out: Tensor = pool(x, pool_type)
            return out
        if x.size is None:
            return pool(x.x, pool_type)  # type: ignore[no-any-return]
        if view.pooling == "map":
            first = view.prefix if view.name != "Eva" and prefix else 0
            return model.attn_pool(x.x[:, first:], attn_mask=log_size_mask(x.size[:, first:], x.x.dtype))  # type: ignore[no-any-return]
        part, weight, kind = x.x[:, prefix:], x.size[:, prefix:, None].to(x.x.dtype), pool_type or view.pooling
        mean = (part * weight).sum(dim=1) / weight.sum(dim=1)
        if kind == "avg":
            return mean
        most = part.masked_fill(weight == 0, -torch.inf).amax(dim=1)
        return most if kind == "max" else 0.5 * (most + mean)

    handle.swap_forward(model.norm, normed)
    handle.swap_item(vars(model), "pool", pooled)


def _no_grid(*args: Any, **options: Any) -> Any:
    raise NotApplicableError(
        "Intermediate features want the full grid, and a recipe drops or merges tokens.", hint="suspend or remove its handle"
    )
