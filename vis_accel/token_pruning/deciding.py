"""The form of AdaViT for training: everything is computed, and what is not used is multiplied by 0.

Paper    Meng et al. 2022, arXiv:2111.15668. Gradients reach the bits through the masked attention (as in `masked`), through the heads'
         outputs and through the sub-layers' branches, all multiplied by their bits.
Law      in evaluation the output is that of `adavit`, which leaves out what is multiplied by 0 (1e-5).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vis_accel.handle import Handle
from vis_accel.token_pruning.adavit import used
from vis_accel.token_pruning.decisions import Bits, Decider, gumbel_sigmoid
from vis_accel.token_pruning.masked import masked_attention
from vis_accel.vit_models.stream import Tokens, run_blocks
from vis_accel.vit_models.view import BlockView, view

__all__ = ["DecidingModel", "DecidingOutcome"]


class DecidingOutcome(NamedTuple):
    """What a training forward hands out: logits (B x classes), and the bits of each block from the second on."""

    logits: Tensor
    bits: tuple[Bits, ...]


class DecidingModel(nn.Module):
    """A model with decision heads, as it is trained. It runs one forward at a time.

    Args:
        model: a timm model with a class token; it belongs to this module from now on.
        deciders: of blocks 1, 2, ...; None: fresh ones, which use nearly everything.
    """

    def __init__(self, model: nn.Module, deciders: nn.ModuleList | None = None) -> None:
        super().__init__()
        known = view(model)
        if deciders is None:
            deciders = nn.ModuleList(Decider(known.width, known.blocks[0].heads) for _ in known.blocks[1:])
        self.model, self.deciders, self.prefix = model, deciders, known.prefix
        self._seen: list[Bits] = []  # of the forward that is under way
        steps = {index: partial(self._step, index - 1) for index in range(1, len(known.blocks))}
        run_blocks(Handle(model, "deciding"), known, steps)  # nobody keeps the handle: it stays

    def forward(self, images: Tensor) -> DecidingOutcome:
        """Of normalised images."""
        self._seen.clear()
        logits = self.model(images)
        seen = tuple(self._seen)
        self._seen.clear()
        return DecidingOutcome(logits, seen)

    def _step(self, place: int, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Tokens:
        logits = self.deciders[place](tokens.x, self.prefix)
        bits = Bits(*map(gumbel_sigmoid, logits)) if self.training else Bits(*(part.float() for part in used(logits)))
        self._seen.append(bits)
        kept = torch.cat((bits.patches.new_ones(len(tokens.x), self.prefix), bits.patches), dim=1)
        found = block.project(tokens.x, rope)
        y = masked_attention(found.q, found.k, found.v, kept, block.scale) * bits.heads[:, :, None, None].to(found.v.dtype)
        x, gate = tokens.x, kept[..., None]
        x = x + (block.join(found, y) - x) * (gate * bits.layers[:, 0, None, None]).to(x.dtype)
        x = x + (block.feed(x) - x) * (gate * bits.layers[:, 1, None, None]).to(x.dtype)
        return tokens._replace(x=x)
