"""Integer kernels of Linear and Conv2d: uint8 activations times int8 weights, summed in int32, in one oneDNN call with scales and bias.

A packed weight is an opaque tensor that neither torch.compile nor a copy can look into. So it stays in a table here, and the two operators
`vis_accel::linear_int8` and `vis_accel::conv_int8` get its number: a compiled graph sees an ordinary operator between the kernels it
fuses itself, and rounding the activations becomes part of those.

Cost     about 2 x the multiplications a second of bfloat16 and 4 x float32's, on a processor with AVX-512 VNNI.
Signed activations would fall back to a reference kernel that is thousands of times slower: activations are unsigned.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["Packed", "pack", "supported"]

_table: dict[int, Packed] = {}
_numbers = itertools.count()


def supported() -> str | None:
    """Why this machine cannot run the kernels; None if it can."""
    if not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        return "this build of PyTorch has no oneDNN integer kernels"
    if not torch.cpu._is_vnni_supported():
        return "this processor has no VNNI instructions, without which integers are slower than floats"
    return None


@dataclass(frozen=True, eq=False)
class Packed:
    """A layer's weight, ready for its kernel; called with uint8 activations.

    Attributes:
        number: its place in the table.
        weight: packed int8.
        scales: float32 [O].
        bias: float32 [O], or None.
        out: O.
        kernel, stride, padding, dilation: of a convolution; empty for a Linear.
    """

    number: int
    weight: Tensor
    scales: Tensor
    bias: Tensor | None
    out: int
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    def free(self) -> None:
        """Drops the weight from the table."""
        _table.pop(self.number, None)

    def __call__(self, x: Tensor, scale: Tensor, zero: Tensor, dtype: torch.dtype) -> Tensor:
        """The layer.

        Args:
            x: uint8 [..., K], or [B, K, H, W].
            scale: float32 [], of x.
            zero: int32 [], of x.
            dtype: of the result: float32 or bfloat16.

        Returns:
            [..., O], or [B, O, H', W'] in channels-last layout.
        """
        if self.kernel:
            return cast("Tensor", torch.ops.vis_accel.conv_int8(x, scale, zero, self.number, self._shape(x), dtype))
        return cast("Tensor", torch.ops.vis_accel.linear_int8(x, scale, zero, self.number, self.out, dtype))

    def _shape(self, x: Tensor) -> list[int]:
        sides = zip(x.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [x.shape[0], self.out, *((side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in sides)]


def pack(module: nn.Linear | nn.Conv2d, weight: Tensor, scales: Tensor) -> Packed:
    """Packs whole-number weights (int8, the shape of the module's) for the module's kernel, and enters them in the table."""
    bias = None if module.bias is None else module.bias.detach().float()
    scales, number = scales.float().contiguous(), next(_numbers)
    if isinstance(module, nn.Linear):
        packed = Packed(number, torch.ops.onednn.qlinear_prepack(weight.contiguous(), None), scales, bias, module.out_features)
    else:
        stride, padding, dilation = (cast("tuple[int, int]", pair) for pair in (module.stride, module.padding, module.dilation))
        ready = torch.ops.onednn.qconv_prepack(weight.contiguous(), scales, 1.0, 0, stride, padding, dilation, module.groups, None)
        packed = Packed(number, ready, scales, bias, module.out_channels, tuple(module.kernel_size), stride, padding, dilation)
    _table[number] = packed
    return packed


_library = torch.library.Library("vis_accel", "DEF")
_library.define("linear_int8(Tensor x, Tensor scale, Tensor zero, int layer, int out, ScalarType dtype) -> Tensor")
_library.define("conv_int8(Tensor x, Tensor scale, Tensor zero, int layer, int[] shape, ScalarType dtype) -> Tensor")


def _linear(x: Tensor, scale: Tensor, zero: Tensor, layer: int, out: int, dtype: torch.dtype) -> Tensor:
    own = _table[layer]
    zeros = torch.zeros(out, dtype=torch.int32)
    found = torch.ops.onednn.qlinear_pointwise.tensor(
        x.contiguous(), scale, zero, own.weight, own.scales, zeros, own.bias, 1.0, 0, dtype, "none", [], ""
    )
    return cast("Tensor", found)


def _conv(x: Tensor, scale: Tensor, zero: Tensor, layer: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    own = _table[layer]
    zeros, x = torch.zeros(own.out, dtype=torch.int32), x.contiguous(memory_format=torch.channels_last)
    geometry = (own.stride, own.padding, own.dilation, 1)
    found = torch.ops.onednn.qconv2d_pointwise.tensor(
        x, scale, zero, own.weight, own.scales, zeros, own.bias, *geometry, 1.0, 0, dtype, "none", [], ""
    )
    return cast("Tensor", found)


def _linear_shape(x: Tensor, scale: Tensor, zero: Tensor, layer: int, out: int, dtype: torch.dtype) -> Tensor:
    return x.new_empty((*x.shape[:-1], out), dtype=dtype)


def _conv_shape(x: Tensor, scale: Tensor, zero: Tensor, layer: int, shape: list[int], dtype: torch.dtype) -> Tensor:
    return x.new_empty(shape, dtype=dtype).to(memory_format=torch.channels_last)


_library.impl("linear_int8", _linear, "CPU")
_library.impl("conv_int8", _conv, "CPU")
torch.library.register_fake("vis_accel::linear_int8", _linear_shape, lib=_library)
torch.library.register_fake("vis_accel::conv_int8", _conv_shape, lib=_library)
