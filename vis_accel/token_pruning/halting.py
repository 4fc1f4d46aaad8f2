"""Halting of tokens, block by block: the mathematics of A-ViT, and the step that both its training and its inference run.

Paper    Yin et al. 2022, "A-ViT: Adaptive Tokens for Efficient Vision Transformer", arXiv:2112.07658, algorithm 1. After block l token k
         has the score h = sigmoid(gamma x_k[0] - beta) of its channel 0, and 1 after the last block; it halts where the sum of its
         scores reaches 1 - epsilon. Its output is the mean of its states weighted by h, with the remainder 1 - (sum before) at its
         halt.
Law      the weights of a token sum to 1; a token that has halted is no key for others; dropping halted tokens changes no output.

Shapes   B images, N tokens, P of them prefix, R of these read by the head, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vis_accel.handle import Handle
from vis_accel.token_pruning.compact import alive_first
from vis_accel.token_pruning.tally import Tally
from vis_accel.token_pruning.tome import placed
from vis_accel.vit_models.attention import log_size_mask
from vis_accel.vit_models.stream import Tokens, run_blocks, take
from vis_accel.vit_models.view import BlockView, view

__all__ = ["Halted", "Halting", "HaltingModel", "HaltingOutcome", "Progress", "halt", "score"]


def score(x: Tensor, gamma: float, beta: float) -> Tensor:
    """sigmoid(gamma x[0] - beta) of tokens B x N x C: B x N, float32."""
    return (gamma * x[..., 0].float() - beta).sigmoid()


class Halted(NamedTuple):
    """What one block's scores decide (each B x N).

    Attributes:
        weight: of the block's state in the token's output.
        total: sum of the scores so far.
        alive: bool, whether the token goes on.
    """

    weight: Tensor
    total: Tensor
    alive: Tensor


def halt(h: Tensor, total: Tensor, alive: Tensor, epsilon: float) -> Halted:
    """Adds scores `h` to `total` for the tokens that are `alive`. A score that is not a number never halts a token."""
    after = total + h
    ends = alive & (after >= 1 - epsilon)
    weight = torch.where(ends, 1 - total, h) * alive
    return Halted(weight, torch.where(alive, after, total), alive & ~ends)


class Progress(NamedTuple):
    """What goes with the tokens from block to block.

    Attributes:
        output: B0 x R x C, the outputs so far, for the batch as it was at the start.
        total: B x N, sums of scores.
        alive: B x N, bool.
        images: B, which images of the start these are.
    """

    output: Tensor
    total: Tensor
    alive: Tensor
    images: Tensor


@dataclass(frozen=True)
class Halting:
    """Runs the blocks of a model whose tokens halt.

    Attributes:
        prefix, readers, depth: of the model.
        gamma, beta: of the score.
        epsilon: a token halts at 1 - epsilon.
        compact: whether halted tokens, and images whose read tokens have halted, are dropped; else they are masked.
        watch: is told what each block decided, for losses.
        tally: counts the tokens of each block.
    """

    prefix: int
    readers: int
    depth: int
    gamma: float
    beta: float
    epsilon: float
    compact: bool = True
    watch: Callable[[Halted], None] | None = None
    tally: Tally | None = None

    def __call__(self, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Tokens:
        """The step of each block; after the last, the outputs of the tokens that are read take the place of the tokens."""
        last = block.index == self.depth - 1
        state = tokens.carried or self._start(tokens.x)
        if self.tally is not None:
            self.tally.add(f"tokens in block {block.index}", int(state.alive.sum()), len(state.output))
        if not len(tokens.x):
            return Tokens(state.output) if last else tokens
        bias = None if tokens.size is None else log_size_mask(tokens.size, tokens.x.dtype)
        x = block.feed(block.attention(tokens.x, rope=rope, bias=bias).x)
        h = score(x, self.gamma, self.beta)
        found = halt(torch.ones_like(h) if last else h, state.total, state.alive, self.epsilon)
        if self.watch is not None:
            self.watch(found)
        part = found.weight[:, : self.readers, None].to(x.dtype) * x[:, : self.readers]
        output = state.output.index_add(0, state.images, part) if self.compact else state.output + part
        if last:
            return Tokens(output)
        tokens = placed(tokens._replace(x=x), self.prefix, rope)
        state = Progress(output, found.total, found.alive, state.images)
        return self._dropped(tokens, state) if self.compact else _masked(tokens, state)

    def _start(self, x: Tensor) -> Progress:
        total = x.new_zeros(x.shape[:2], dtype=torch.float32)
        alive = torch.ones_like(total, dtype=torch.bool)
        return Progress(torch.zeros_like(x[:, : self.readers]), total, alive, torch.arange(len(x), device=x.device))

    def _dropped(self, tokens: Tokens, state: Progress) -> Tokens:
        """Without the images that are done, and without the patches that halted."""
        awake = state.alive[:, : self.readers].any(dim=1)
        patches = state.alive[:, self.prefix :]
        if bool(state.alive.all()):
            return tokens._replace(carried=state)
        keep = awake.nonzero()[:, 0]
        index, there = alive_first(patches[keep])
        first = torch.arange(self.prefix, device=index.device).expand(len(index), -1)
        rows = torch.cat((first, index + self.prefix), dim=1)
        alive = torch.cat((state.alive[keep, : self.prefix], there), dim=1)
        state = Progress(state.output, take(state.total[keep], rows), alive, state.images[keep])
        place = None if tokens.place is None else take(tokens.place[keep], index)
        return _masked(Tokens(take(tokens.x[keep], rows), None, place), state)


def _masked(tokens: Tokens, state: Progress) -> Tokens:
    """Halted tokens are keys of nobody; an image without others keeps its first token, whose output is complete."""
    if bool(state.alive.all()):
        return tokens._replace(size=None, carried=state)
    size = state.alive.float()
    done = ~state.alive.any(dim=1)
    size[:, 0] = torch.where(done, 1.0, size[:, 0])
    return tokens._replace(size=size, carried=state)


class HaltingOutcome(NamedTuple):
    """What a training forward hands out.

    Attributes:
        logits: B x classes.
        weights: of each block in the outputs of the tokens, B x N.
        ponder: B x N, blocks run plus remainder; gradients reach the remainder alone.
        depth: B x N, blocks run.
    """

    logits: Tensor
    weights: tuple[Tensor, ...]
    ponder: Tensor
    depth: Tensor


class HaltingModel(nn.Module):
    """A model whose tokens halt, as it is trained: all are computed, halted ones masked. It runs one forward at a time.

    Args:
        model: a timm model whose head reads the class token; it belongs to this module from now on.
        gamma, beta: of the score.
        epsilon: a token halts at 1 - epsilon.
    """

    def __init__(self, model: nn.Module, gamma: float, beta: float, epsilon: float = 0.01) -> None:
        super().__init__()
        self.model = model
        self._seen: list[Halted] = []  # of the forward that is under way
        known = view(model)
        step = Halting(known.prefix, known.readers, len(known.blocks), gamma, beta, epsilon, compact=False, watch=self._note)
        run_blocks(Handle(model, "halting"), known, {block.index: step for block in known.blocks})  # nobody keeps the handle: it stays

    def forward(self, images: Tensor) -> HaltingOutcome:
        """Of normalised images."""
        self._seen.clear()
        logits = self.model(images)
        seen = tuple(self._seen)
        self._seen.clear()
        depth = remainder = torch.zeros_like(seen[0].weight)
        before = torch.ones_like(seen[0].alive)
        for found in seen:
            depth = depth + before
            remainder = remainder + torch.where(before & ~found.alive, found.weight, 0.0)
            before = found.alive
        return HaltingOutcome(logits, tuple(found.weight for found in seen), depth + remainder, depth)

    def _note(self, found: Halted) -> None:
        self._seen.append(found)
