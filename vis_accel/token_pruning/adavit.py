"""AdaViT: each image uses the sub-layers, heads and patches that small trained heads ask for, block by block.

Paper    Meng et al. 2022, "AdaViT: Adaptive Vision Transformers for Efficient Image Recognition", arXiv:2111.15668: decisions in
         `decisions`, usage loss in `losses`. A patch that is left out of a block passes it unchanged, and the next block asks again.
Cost     C (2 + H) multiply-adds and C a patch, each block. Really faster, unlike the authors' code, which masks: a sub-layer runs for the
         images that use it, on the patches that take part (the rest of a batch is padded to its longest image). Heads are masked:
         leaving them out would take a product of another shape for every image.
Departs  a left-out patch skips the MLP too, as in the authors' variant of that name; all decisions are taken from the block's input.
Not      a method for any model off the shelf. None is trained and shipped here: three kinds of raggedness make small products out of large
         ones, and whether that pays is for a measurement to say.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from vis_accel import addons
from vis_accel.handle import Handle
from vis_accel.method import Context, Touch, option
from vis_accel.token_pruning.base import TokenMethod, vit_view
from vis_accel.token_pruning.compact import alive_first, sizes
from vis_accel.token_pruning.decisions import Bits, Decider, deciders_from
from vis_accel.token_pruning.tally import Tally
from vis_accel.vit_models.attention import log_size_mask
from vis_accel.vit_models.stream import Step, Tokens, rope_among, run_blocks, take
from vis_accel.vit_models.view import BlockView, ViTView

__all__ = ["Adavit", "used"]


def used(logits: Bits) -> Bits:
    """What is used, as bool. A logit that is not a number leaves everything in."""
    return Bits(*(~(part <= 0) for part in logits))


@dataclass(frozen=True, kw_only=True)
class Adavit(TokenMethod):
    """Skips sub-layers, heads and patches by trained decisions."""

    name: ClassVar[str] = "adavit"
    needs: ClassVar[frozenset[str]] = frozenset({"all tokens", "class token"})
    breaks: ClassVar[frozenset[str]] = frozenset({"static forward"})
    touches: ClassVar[tuple[Touch, ...]] = (Touch("tokens", "replaces"), Touch("weights", "replaces"), Touch("last block", "replaces"))

    weights: str | None = option(None, "the name of trained parameters that ship, or a file of token_pruning/train.py")

    def check_target(self, view: Any) -> None:
        vit_view(self, view).require_class_token(self.name, "decides by")
        addons.find(self.name, view.model, self.weights)

    def describe(self, view: ViTView) -> list[str]:
        return [f"blocks 1 to {len(view.blocks) - 1} use the sub-layers, heads and patches that the image asks for"]

    def apply(self, target: Any, context: Context) -> Handle:
        """Swaps the parameters and wraps all blocks but the first."""
        view: ViTView = context.view
        addon, some = addons.find(self.name, target, self.weights), next(iter(target.parameters()))
        found = deciders_from(addon.tensors, view.width, view.blocks[0].heads, len(view.blocks))
        moved = [decider.to(some.device, some.dtype) for decider in found]
        tally = Tally()
        steps: dict[int, Step] = {index: partial(_step, decider, view.prefix, tally) for index, decider in enumerate(moved, start=1)}
        own = {name.removeprefix("model."): tensor for name, tensor in addon.tensors.items() if name.startswith("model.")}
        with Handle.building(target, str(self)) as handle:
            addons.swap_parameters(handle, target, own)
            run_blocks(handle, view, steps)
            handle.reports(tally.take)
        return handle


def _step(decider: Decider, prefix: int, tally: Tally, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Tokens:
    with torch.no_grad():
        bits = used(decider(tokens.x, prefix))
        for name, part in bits._asdict().items():
            tally.add(f"share of {name} used", float(part.float().mean()) * len(part), len(part))
    x = tokens.x
    for layer, run in enumerate((partial(_attention, block, rope, bits.heads, prefix), partial(_feed, block))):
        x = _on_part(x, bits.layers[:, layer], bits.patches, prefix, run)
    return tokens._replace(x=x)


class _Part(NamedTuple):
    """What takes part in a sub-layer: images (b), of each the patches `patches` (b x M), of which those not `there` (b x M) are padding."""

    images: Tensor
    patches: Tensor
    there: Tensor


def _on_part(x: Tensor, images: Tensor, patches: Tensor, prefix: int, run: Callable[[Tensor, _Part | None], Tensor]) -> Tensor:
    """`run` for the images (B) and patches (B x P) that take part; the rest of x passes unchanged."""
    if bool(images.all() & patches.all()):
        return run(x, None)
    chosen = images.nonzero()[:, 0]
    if not len(chosen):
        return x
    index, there = alive_first(patches[chosen])
    rows = torch.cat((torch.arange(prefix, device=x.device).expand(len(chosen), -1), index + prefix), dim=1)
    part = take(x[chosen], rows)
    out = run(part, _Part(chosen, index, there))
    mask = torch.cat((there.new_ones(len(there), prefix), there), dim=1)[..., None]
    back = x[chosen].scatter(1, rows[..., None].expand_as(out), torch.where(mask, out, part))
    return x.index_copy(0, chosen, back)


def _attention(block: BlockView, rope: Tensor | None, heads: Tensor, prefix: int, x: Tensor, part: _Part | None) -> Tensor:
    bias = None
    if part is not None:
        heads = heads[part.images]
        rope = None if rope is None else rope_among(rope if rope.ndim < 4 else rope[part.images], part.patches)
        size = sizes(part.there, prefix)
        bias = None if size is None else log_size_mask(size, x.dtype)
    found = block.project(x, rope)
    y = block.attend(found.q, found.k, found.v, bias=bias)
    return block.join(found, y if bool(heads.all()) else y * heads[:, :, None, None])


def _feed(block: BlockView, x: Tensor, part: _Part | None) -> Tensor:
    return block.feed(x)
