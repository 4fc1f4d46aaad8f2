"""A layer in few bits as it runs: on integer kernels, or simulated in float arithmetic.

Traced   for another runtime a layer on integer kernels is shown as FakeQuantize of its input and its weight, which such a runtime makes
         integers of by itself.

Ranges   one for all calls, or one for each call of a run; `step` says which call it is.
Half     of a layer whose input channels are two distributions side by side: two parts, whose answers are added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from vis_accel.errors import UsageError
from vis_accel.precision import kernels
from vis_accel.precision.layers import float_layer, leaves_python, produced
from vis_accel.precision.rounding import Range, fake_activation, levels, round_activation

__all__ = ["RoundedLayer", "RoundedPart", "Soft", "traced_weight"]


class Soft(Protocol):
    """What stands for a part's weight and rounds its input, differentiably, while the rounding is being sought."""

    def values(self) -> Tensor:
        """The weight as it is now."""

    def activation(self, x: Tensor, scale: Tensor, zero: Tensor, bits: int, step: Tensor) -> Tensor:
        """The input, rounded for the call `step`, int64 [1]."""


class RoundedPart:
    """A layer, or a group of its input channels.

    Args:
        module: the float layer; of a group, one on its channels only.
        whole: its weight in whole numbers, int8.
        scales: float32 [O].
        scale_of, zero_of: of its activations, float32 and int32 [1], or one for each call of a run.
        bits: of its activations.
        step: int64 [1], the index of the call that is under way.
        packed: the integer kernel; None: simulated.

    Attributes:
        soft: while its rounding is being sought, what stands for its weight.
    """

    def __init__(
        self, module: nn.Linear | nn.Conv2d, whole: Tensor, scales: Tensor, scale_of: Tensor, zero_of: Tensor, bits: int, step: Tensor,
        packed: kernels.Packed | None,
    ) -> None:  # fmt: skip
        self.module, self.scales, self.step, self.packed = module, scales, step, packed
        self.scale_of, self.zero_of, self.bits, self.by_step = scale_of, zero_of, bits, len(scale_of) > 1
        self.scale, self.zero = scale_of[0].clone(), zero_of[0].clone()
        self._numbers = float(self.scale), int(self.zero)  # for graphs that are traced, which must not ask tensors for numbers
        self.soft: Soft | None = None
        self.round(whole)

    def round(self, whole: Tensor) -> None:
        """Takes other whole numbers for its weight. Of a simulated part: a kernel has packed its own."""
        self.whole, self.soft = whole, None
        self.values = None if self.packed is not None else whole.float() * self.scales.reshape([-1, *[1] * (whole.ndim - 1)])

    def learned(self, whole: Tensor, scale_of: Tensor) -> None:
        """Takes other whole numbers and other activation scales. Of a simulated part."""
        self.scale_of, self.scale = scale_of, scale_of[0].clone()
        self._numbers = float(self.scale), int(self.zero)
        self.round(whole)

    @classmethod
    def of(
        cls, module: nn.Linear | nn.Conv2d, whole: Tensor, scales: Tensor, ranges: Sequence[Range], step: Tensor,
        packed: kernels.Packed | None,
    ) -> RoundedPart:  # fmt: skip
        """With ranges as they were found."""
        scale_of = torch.tensor([one.scale for one in ranges])
        return cls(
            module, whole, scales, scale_of, torch.tensor([one.zero for one in ranges], dtype=torch.int32), ranges[0].bits, step, packed
        )

    def __call__(self, x: Tensor) -> Tensor:
        if self.by_step and leaves_python():
            raise UsageError("Ranges by step cannot be part of a graph for another runtime.", hint="q-diffusion(ranges='static')")
        scale, zero = self.scale, self.zero
        if self.by_step:
            scale, zero = self.scale_of.index_select(0, self.step).reshape(()), self.zero_of.index_select(0, self.step).reshape(())
        if self.soft is not None:
            return float_layer(self.module, self.soft.activation(x, scale, zero, self.bits, self.step), self.soft.values())
        if self.packed is None:
            assert self.values is not None  # noqa: S101 - `round` made them
            return float_layer(self.module, fake_activation(x, scale, zero, self.bits), self.values.to(x.dtype))
        if leaves_python():
            return float_layer(self.module, self._traced(x), traced_weight(self.whole, self.scales))
        return self.packed(round_activation(x, scale, zero, self.bits).to(torch.uint8), scale, zero, produced(x))

    def _traced(self, x: Tensor) -> Tensor:
        return torch.fake_quantize_per_tensor_affine(x, *self._numbers, 0, levels(self.bits))


def traced_weight(whole: Tensor, scales: Tensor) -> Tensor:
    """Whole-number weights as a graph for another runtime must show them: float values behind a FakeQuantize of their own scales."""
    values = whole.float() * scales.reshape(-1, *[1] * (whole.ndim - 1))
    return torch.fake_quantize_per_channel_affine(values, scales, torch.zeros(scales.shape[0], dtype=torch.int32), 0, -127, 127)


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
