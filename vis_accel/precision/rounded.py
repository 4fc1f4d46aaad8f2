"""A layer in few bits as it runs: on integer kernels, or simulated in float arithmetic.

Ranges   one for all calls, or one for each call of a run; `step` says which call it is.
Half     of a layer whose input channels are two distributions side by side: two parts, whose answers are added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vis_accel.errors import UsageError
from vis_accel.precision import kernels
from vis_accel.precision.layers import float_layer, leaves_python, produced
from vis_accel.precision.reconstruct import SoftWeight
from vis_accel.precision.rounding import Range, fake_activation, levels, round_activation

__all__ = ["RoundedLayer", "RoundedPart"]


class RoundedPart:
    """A layer, or a group of its input channels.

    Args:
        module: the float layer; of a group, one on its channels only.
        whole: its weight in whole numbers, int8.
        scales: float32 [O].
        ranges: of its activations, one, or one for each call of a run.
        step: int64 [1], the index of the call that is under way.
        packed: the integer kernel; None: simulated.

    Attributes:
        soft: while its rounding is being sought, what stands for its weight.
    """

    def __init__(
        self, module: nn.Linear | nn.Conv2d, whole: Tensor, scales: Tensor, ranges: Sequence[Range], step: Tensor,
        packed: kernels.Packed | None,
    ) -> None:  # fmt: skip
        self.module, self.scales, self.step, self.packed = module, scales, step, packed
        self.bits, self.by_step = ranges[0].bits, len(ranges) > 1
        self.scale_of = torch.tensor([one.scale for one in ranges])
        self.zero_of = torch.tensor([one.zero for one in ranges], dtype=torch.int32)
        self.soft: SoftWeight | None = None
        self.round(whole)

    def round(self, whole: Tensor) -> None:
        """Takes other whole numbers for its weight. Of a simulated part: a kernel has packed its own."""
        self.whole, self.soft = whole, None
        self.values = whole.float() * self.scales.reshape([-1, *[1] * (whole.ndim - 1)])

    def __call__(self, x: Tensor) -> Tensor:
        if self.by_step and leaves_python():
            raise UsageError("Ranges by step cannot be part of a graph for another runtime.", hint="q-diffusion(ranges='static')")
        at = self.step if self.by_step else torch.zeros_like(self.step)
        scale, zero = self.scale_of.index_select(0, at).reshape(()), self.zero_of.index_select(0, at).reshape(())
        if self.soft is not None:
            return float_layer(self.module, _straight_through(x, scale, zero, self.bits), self.soft.values())
        if self.packed is None or leaves_python():
            return float_layer(self.module, fake_activation(x, scale, zero, self.bits), self.values.to(x.dtype))
        return self.packed(round_activation(x, scale, zero, self.bits).to(torch.uint8), scale, zero, produced(x))


class RoundedLayer:
    """All parts of a layer, in the place of its forward.

    Args:
        parts: one, or one for each group of input channels.
        starts: the first channel of each group, and the end of the last.
        bits: of its weights and activations.
    """

    def __init__(self, parts: Sequence[RoundedPart], starts: Sequence[int], bits: tuple[int, int]) -> None:
        self.parts, self.starts, self.bits = parts, starts, bits

    def __call__(self, x: Tensor) -> Tensor:
        if len(self.parts) == 1:
            return self.parts[0](x)
        found = self.parts[0](x[:, : self.starts[1]])
        for part, start, end in zip(self.parts[1:], self.starts[1:-1], self.starts[2:], strict=True):
            found = found + part(x[:, start:end])
        return found


def _straight_through(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """x rounded; its gradient is that of clipping (Esser et al. 2019, arXiv:1902.08153, eq. 5, in x)."""
    inside = torch.clamp(x, -zero * scale, (levels(bits) - zero) * scale)
    return inside + (fake_activation(x.detach(), scale, zero, bits) - inside).detach()
