"""The form of trained selection for training: every patch is computed, those that go are masked out of attention.

Paper    Rao et al. 2021, arXiv:2106.02034: a patch's bit is drawn by a hard Gumbel-softmax, times its bits before; attention is
         exp(q k) G over its sum, G_ij = bit of j for i != j and 1 for i = j, so that gradients reach the bits. 1e-6 keeps the
         quotient defined.
Law      in evaluation bits are those of the highest probabilities, and the outputs of kept tokens are those of `selection` (1e-5).
Cost     that of the plain network and its attention matrices: no faster than without dropping.

Shapes   B images, N tokens of which P patches, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel.handle import Handle
from vis_accel.token_pruning.selection import packaged
from vis_accel.vit_models.stream import Tokens, run_blocks
from vis_accel.vit_models.view import BlockView, view

__all__ = ["MaskedModel", "Outcome", "drawn", "highest", "masked_attention"]

_EPSILON = 1e-6


def masked_attention(q: Tensor, k: Tensor, v: Tensor, kept: Tensor, scale: float) -> Tensor:
    """Attention (B x heads x N x d) in which token j counts for others as much as its bit `kept` (B x N), and fully for itself.

    Scores are taken relative to the highest among kept tokens, so that a dropped one cannot press the others down to nothing.
    """
    scores = (q @ k.transpose(-2, -1)).float() * scale
    count = scores.shape[-1]
    itself = torch.eye(count, device=scores.device, dtype=torch.bool)
    gate = torch.where(itself, 1.0, kept.float()[:, None, None, :])
    with torch.no_grad():
        top = scores.masked_fill(gate == 0, -torch.inf).amax(dim=-1, keepdim=True)
    weights = (scores - top).clamp_max(0.0).exp() * gate
    weights = (weights + _EPSILON / count) / (weights.sum(dim=-1, keepdim=True) + _EPSILON)
    return weights.to(v.dtype) @ v


def drawn(log_probabilities: Tensor, kept: Tensor) -> Tensor:
    """Bits (B x P, 0 or 1) drawn by a hard Gumbel-softmax at temperature 1, straight through, times the bits so far."""
    return functional.gumbel_softmax(log_probabilities, tau=1.0, hard=True)[..., 0] * kept


def highest(log_probabilities: Tensor, kept: Tensor, count: int) -> Tensor:
    """Bits of the `count` patches with the highest probability among those kept so far."""
    scores = log_probabilities[..., 0].masked_fill(kept == 0, -torch.inf)
    order = scores.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(kept).scatter(1, order, 1.0)


class Outcome(NamedTuple):
    """What a training forward hands out.

    Attributes:
        logits: B x classes.
        tokens: B x N x C, after the last block.
        kept: B x N, bits at the end; the prefix has 1.
        stages: the bits after each stage (B x P), packages left out.
    """

    logits: Tensor
    tokens: Tensor
    kept: Tensor
    stages: tuple[Tensor, ...]


class MaskedModel(nn.Module):
    """A model with selectors, as it is trained. It runs one forward at a time.

    Args:
        model: a timm model whose blocks are known; it belongs to this module from now on.
        selectors: one a stage.
        counts: by stage (block, 0-based), how many patches stay in evaluation.
        package: whether those that go become a package token.
    """

    def __init__(self, model: nn.Module, selectors: nn.ModuleList, counts: Mapping[int, int], *, package: bool) -> None:
        super().__init__()
        self.model, self.selectors, self.package = model, selectors, package
        self.counts = dict(counts)
        self._stages: list[Tensor] = []  # of the forward that is under way
        self._last: list[Tokens] = []
        known = view(model)
        self.prefix, self.patches = known.prefix, known.patches
        steps = {block.index: partial(self._step, block.index) for block in known.blocks[min(self.counts) :]}
        run_blocks(Handle(model, "masked selection"), known, steps, sizes=True)  # nobody keeps the handle: it stays

    def forward(self, images: Tensor) -> Outcome:
        """Of normalised images."""
        self._stages.clear()
        self._last.clear()
        logits = self.model(images)
        last, stages = self._last[0], tuple(bits[:, : self.patches] for bits in self._stages)
        self._stages.clear()
        self._last.clear()
        kept: Any = last.size
        return Outcome(logits, last.x, kept, stages)

    def _step(self, index: int, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Tokens:
        if index in self.counts:
            tokens = self._decide(list(self.counts).index(index), tokens)
        found, kept = block.project(tokens.x, rope), tokens.size
        assert kept is not None  # noqa: S101 - the first of these blocks is a stage
        y = masked_attention(found.q, found.k, found.v, kept, block.scale)
        tokens = tokens._replace(x=block.feed(block.join(found, y)))
        if index == len(self.model.blocks) - 1:  # type: ignore[arg-type]
            self._last.append(tokens)
        return tokens

    def _decide(self, stage: int, tokens: Tokens) -> Tokens:
        patches, prefix = tokens.x[:, self.prefix :], tokens.x.new_ones(len(tokens.x), self.prefix, dtype=torch.float32)
        before = patches.new_ones(patches.shape[:2], dtype=torch.float32) if tokens.size is None else tokens.size[:, self.prefix :]
        found = self.selectors[stage](patches, before)
        bits = drawn(found, before) if self.training else highest(found, before, list(self.counts.values())[stage])
        self._stages.append(bits)
        if not self.package or list(self.counts.values())[stage] == self._present(stage):
            return tokens._replace(size=torch.cat((prefix, bits), dim=1))
        gone = before - bits
        gone = gone * (gone.detach() > 0.5)  # straight-through bits are 0 and 1 up to rounding
        pack = packaged(patches, gone * found[..., 0].exp())
        return tokens._replace(x=torch.cat((tokens.x, pack), dim=1), size=torch.cat((prefix, bits, prefix.new_ones(len(pack), 1)), dim=1))

    def _present(self, stage: int) -> int:
        """How many patches, packages included, come to a stage in evaluation."""
        if not stage:
            return self.patches
        before = list(self.counts.values())[stage - 1]
        return before + (before != self._present(stage - 1))
