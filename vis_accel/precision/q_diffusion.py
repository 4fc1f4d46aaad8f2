"""Q-Diffusion: a denoiser in 8 or fewer bits, calibrated over the steps of the very run it will serve.

Paper    Li et al. 2023, arXiv:2302.04304. Calibration inputs from all steps (sec. 3.2): what goes into a layer drifts with time. Split
         shortcuts (sec. 3.3). 4-bit weights by adaptive rounding, the first and last layer in 8 bits.
Run      ranges by step, splitting and what stays in float are those of `rounded_run.py`.
Cost     a run of `images` images, and for fewer than 8 bits `iterations` small steps a block or layer.
Differs  scales of weights are symmetric; reconstruction is as reconstruct.py says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vis_accel.method import option
from vis_accel.precision.blocks import Example, answer_of, blocks_of
from vis_accel.precision.layers import Layer
from vis_accel.precision.observe import Seen
from vis_accel.precision.reconstruct import SoftWeight, adapted, apart, settle
from vis_accel.precision.rounded import RoundedLayer
from vis_accel.precision.rounded_run import RoundedRun, Watch, concatenations
from vis_accel.precision.rounding import Range, fake_activation, round_weight

__all__ = ["QDiffusion", "concatenations"]

KEPT = 4  # inputs of each call kept for adaptive rounding


@dataclass(frozen=True, kw_only=True)
class QDiffusion(RoundedRun):
    """A pipeline's denoiser, rounded with ranges of its own run."""

    name: ClassVar[str] = "q-diffusion"

    rounding: Literal["adaptive", "nearest"] = option("adaptive", "how weights of fewer than 8 bits are rounded")
    unit: Literal["block", "layer"] = option("block", "whose outputs adaptive rounding reproduces: a residual block's, or each layer's")
    iterations: int = option(500, "the number of optimiser steps a block or layer, for adaptive rounding", low=1)

    @property
    def _adapts(self) -> bool:
        return self.weights < 8 and self.rounding == "adaptive"

    def watched(self, network: nn.Module, layers: list[Layer]) -> Watch:
        """A few rows of each block, and of the layers outside them."""
        blocks = blocks_of(network, {layer.module for layer in layers}) if self._adapts and self.unit == "block" else {}
        return Watch(blocks, KEPT, KEPT if self._adapts else 0)

    def whole_weight(self, twin: nn.Linear | nn.Conv2d, scales: Tensor, bits: int, seen: Seen, ranges: list[Range]) -> Tensor:
        """To the nearest; adaptively where the layer is in no block."""
        if bits == 8 or not seen.whole:
            return round_weight(twin.weight, scales, bits)
        of = [ranges[index if len(ranges) > 1 else 0] for index in seen.calls]
        rounded = torch.cat([fake_activation(x, *one) for one, x in zip(of, seen.whole, strict=True)])
        return adapted(twin, scales, bits, torch.cat(seen.whole), rounded, iterations=self.iterations)

    def adjust(
        self,
        network: nn.Module,
        rounded: dict[nn.Module, RoundedLayer],
        examples: dict[nn.Module, list[Example]],
        step: Tensor,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Block by block, rounds the weights of fewer than 8 bits anew, so that the block's answers are the float block's."""
        blocks = blocks_of(network, rounded)
        for done, (block, layers) in enumerate(blocks.items()):
            progress("rounding blocks", done, len(blocks))
            parts = [part for module in layers for part in rounded[module].parts if rounded[module].bits[0] < 8]
            given = examples.pop(block, [])
            if not parts or not given:
                continue
            softs = [SoftWeight(part.module.weight, part.scales, self.weights) for part in parts]
            for part, soft in zip(parts, softs, strict=True):
                part.soft = soft

            def loss(random: torch.Generator, block: nn.Module = block, given: list[Example] = given) -> Tensor:
                one = given[int(torch.randint(len(given), (), generator=random))]
                step.fill_(one.call)
                return apart(answer_of(block(*one.args, **one.kwargs)), one.answer)

            settle(softs, loss, iterations=self.iterations)
            for part, soft in zip(parts, softs, strict=True):
                part.round(soft.whole())
        progress("rounding blocks", len(blocks), len(blocks))
