"""EfficientDM: a denoiser in few bits, its weights moved by a low-rank matrix before they are rounded.

Paper    He et al. 2023, arXiv:2310.03270. W_q = Q(W + B A) with one set of scales: the product is inside the rounding, so nothing of it is
         left at run time. Each call of the run has an activation scale of its own, which is learned too. Data-free: on the states of
         the float model's own run the answers of the rounded network are pulled to the float network's.
Rates    a layer's low-rank matrices move in proportion to its weights' scales: `rate` is in steps of the rounding a step of Adam.
Run      ranges by step, splitting and what stays in float are those of `rounded_run.py`; scales of weights stay where they lose least.
Cost     a run of `images` images, and `iterations` forward and backward passes of the whole network.
Differs  calls are drawn at random instead of one after the other; the error is relative to the answer's mean square, so that no call of
         the run outweighs the others; scales are learned as logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vis_accel.errors import UsageError
from vis_accel.method import option
from vis_accel.precision.blocks import Example, answer_of
from vis_accel.precision.layers import Layer
from vis_accel.precision.observe import Seen
from vis_accel.precision.rounded import RoundedLayer, RoundedPart
from vis_accel.precision.rounded_run import RoundedRun, Watch
from vis_accel.precision.rounding import Range, levels, round_weight

__all__ = ["EfficientDm", "LowRank"]

BATCH = 16
SCALE_RATE = 1e-3  # of Adam, on the logarithm of an activation scale


def rounded(x: Tensor) -> Tensor:
    """x to the nearest whole number, with the slope of x itself (Bengio et al. 2013, arXiv:1308.3432)."""
    return x + (x.detach().round() - x.detach())


class LowRank:
    """The weight and the activation scales of a layer, or of a group of its input channels, while they learn.

    Args:
        part: whose they are; its weight W [O, ...] is K numbers an output.
        bits: of a weight.
        rank: r of A [r, K] and B [O, r]; B begins at 0.
        random: for A.
    """

    def __init__(self, part: RoundedPart, bits: int, rank: int, random: torch.Generator) -> None:
        weight = part.module.weight.detach().float()
        self._weight, self._scale_of, self._top = weight, part.scale_of, int(2 ** (bits - 1) - 1)
        self._along = part.scales.reshape([-1, *[1] * (weight.ndim - 1)])
        width = weight[0].numel()
        rank = min(rank, width, len(weight))
        self.a = (torch.randn(rank, width, generator=random) / math.sqrt(width)).requires_grad_()
        self.b = torch.zeros(len(weight), rank, requires_grad=True)
        self.gain = torch.zeros(len(part.scale_of), requires_grad=True)
        self.steps = float(part.scales.mean()) * math.sqrt(
            width / rank
        )  # an entry of B this large moves W by about one step of its rounding

    def groups(self, rate: float) -> Iterator[dict[str, Any]]:
        """What Adam moves, and how fast."""
        yield {"params": [self.b], "lr": rate * self.steps}
        yield {"params": [self.a], "lr": rate / math.sqrt(self.a.shape[1])}
        yield {"params": [self.gain], "lr": SCALE_RATE}

    def _moved(self) -> Tensor:
        moved: Tensor = (self._weight + (self.b @ self.a).reshape(self._weight.shape)) / self._along
        return moved.clamp(-self._top, self._top)

    def values(self) -> Tensor:
        """Q(W + B A), differentiable."""
        return rounded(self._moved()) * self._along

    def activation(self, x: Tensor, scale: Tensor, zero: Tensor, bits: int, step: Tensor) -> Tensor:
        """x rounded by the scale of the call as it is now; the slope in the scale is that of Esser et al. 2019, arXiv:1902.08153, eq. 3."""
        index = step if len(self.gain) > 1 else torch.zeros_like(step)
        now = scale * self.gain.index_select(0, index).exp()
        whole = (rounded(x.float() / now) + zero).clamp(0, levels(bits))
        return ((whole - zero) * now).to(x.dtype)

    @torch.no_grad()
    def whole(self) -> Tensor:
        """Whole numbers, int8, the weight's shape."""
        return self._moved().round().to(torch.int8)

    @torch.no_grad()
    def scale_of(self) -> Tensor:
        """The activation scales, float32, one or one for each call."""
        found: Tensor = self._scale_of * self.gain.exp()
        return found


@dataclass(frozen=True, kw_only=True)
class EfficientDm(RoundedRun):
    """A pipeline's denoiser in few bits, tuned to answer as it did."""

    name: ClassVar[str] = "efficientdm"

    weights: Literal[8, 6, 4] = option(4, "the bits of a weight")
    rank: int = option(32, "of the matrix that moves a layer's weight", low=1)
    iterations: int = option(1000, "the number of optimiser steps", low=1)
    rate: float = option(0.02, "how far a step moves a weight, in steps of its rounding", above=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.simulated:
            raise UsageError(f"{self.name} is for fewer than 8 bits, of weights or activations.", hint="q-diffusion, or weights=4")

    def watched(self, network: nn.Module, layers: list[Layer]) -> Watch:
        """Every call of the network as a whole."""
        return Watch({network: [layer.module for layer in layers]})

    def whole_weight(self, twin: nn.Linear | nn.Conv2d, scales: Tensor, bits: int, seen: Seen, ranges: list[Range]) -> Tensor:
        """To the nearest."""
        return round_weight(twin.weight, scales, bits)

    def adjust(
        self,
        network: nn.Module,
        rounded: dict[nn.Module, RoundedLayer],
        examples: dict[nn.Module, list[Example]],
        step: Tensor,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Moves the weights and scales of all layers at once, so that the network answers what it did in float."""
        random = torch.Generator().manual_seed(0)
        parts = [(part, layer.bits[0]) for layer in rounded.values() for part in layer.parts]
        softs = [LowRank(part, bits, self.rank, random) for part, bits in parts]
        for (part, _), soft in zip(parts, softs, strict=True):
            part.soft = soft
        tune(network, softs, examples[network], step, rate=self.rate, iterations=self.iterations, random=random, progress=progress)
        for (part, _), soft in zip(parts, softs, strict=True):
            part.learned(soft.whole(), soft.scale_of())


@torch.enable_grad()
def tune(
    network: nn.Module,
    softs: list[LowRank],
    given: list[Example],
    step: Tensor,
    *,
    rate: float,
    iterations: int,
    random: torch.Generator,
    progress: Callable[[str, int, int], None],
) -> None:
    """Minimises the error of the network's answers, relative to their mean square, over what `softs` may move.

    Args:
        network: with `softs` in the place of its weights.
        softs: what is moved.
        given: calls of the float network, input and answer.
        step: int64 [1], set to the call that an example is of.
        rate, iterations: of Adam, the rate falling linearly to 0.
        random: which calls, and which rows of them.
        progress: told how far it is.
    """
    optimizer = torch.optim.Adam([group for soft in softs for group in soft.groups(rate)])
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / iterations)
    unknowns = [one for group in optimizer.param_groups for one in group["params"]]
    for done in range(iterations):
        one = given[int(torch.randint(len(given), (), generator=random))]
        rows = torch.randperm(len(one.answer), generator=random)[:BATCH]
        step.fill_(one.call)
        answer = answer_of(
            network(*(_some(value, rows, one) for value in one.args), **{k: _some(v, rows, one) for k, v in one.kwargs.items()})
        )
        wanted = one.answer[rows]
        loss = (answer - wanted).square().mean() / wanted.square().mean()
        for unknown, slope in zip(unknowns, torch.autograd.grad(loss, unknowns, allow_unused=True), strict=True):
            unknown.grad = slope
        optimizer.step()
        falling.step()
        if done % 20 == 0:
            progress("tuning", done, iterations)
    progress("tuning", iterations, iterations)


def _some(value: Any, rows: Tensor, of: Example) -> Any:
    """The rows of an argument that has a row for each of the answer's."""
    return value[rows] if isinstance(value, Tensor) and value.ndim and len(value) == len(of.answer) else value
