"""Which layers of a network are rounded, why the others are not, and what a rounded layer computes with.

A Linear or an ungrouped Conv2d is taken if it has the widths integer kernels are made for. The first layer that sees the image and the last
before the output stay in float: they are small, and what they round is seen at once (Li et al. 2023, arXiv:2302.04304, sec. 4: 8 bits
even where all others have 4). So do layers of a few rows a call (time embeddings, the head of a classifier): their time is the memory's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vis_accel.errors import UsageError

__all__ = ["Layer", "candidates", "float_layer", "leaves_python", "part_of", "produced", "reason_against"]

NARROWEST = 16  # channels in or out: below, a kernel's tiles stay half empty
FEWEST_ROWS = 4  # rows an image: below, a layer is a matrix times a few vectors


@dataclass(eq=False)
class Layer:
    """A layer, with its place in the network and what a run showed of it.

    Attributes:
        name: as `named_modules` gives it.
        module: itself.
        shape: of its largest input in a run; empty before one.
        dtype: of what it then produced.
    """

    name: str
    module: nn.Linear | nn.Conv2d
    shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float32

    def see(self, x: Tensor) -> None:
        """Writes down an input's shape."""
        if x.numel() >= math.prod(self.shape or (0,)):
            self.shape, self.dtype = tuple(x.shape), produced(x)

    @property
    def rows(self) -> int:
        """Rows of the matrix product a call: positions times images."""
        if isinstance(self.module, nn.Linear):
            return math.prod(self.shape[:-1])
        stride = self.module.stride
        return self.shape[0] * (self.shape[2] // int(stride[0])) * (self.shape[3] // int(stride[1]))

    @property
    def few_rows(self) -> bool:
        """Whether a run showed a Linear that handles a vector an image, not a grid of them."""
        return bool(self.shape) and isinstance(self.module, nn.Linear) and self.rows < FEWEST_ROWS * self.shape[0]

    @property
    def macs(self) -> int:
        """Multiply-accumulates a call."""
        return self.rows * self.module.weight.numel()


def candidates(network: nn.Module) -> Iterator[Layer]:
    """Every Linear and Conv2d, in the order of the network."""
    for name, module in network.named_modules():
        if type(module) in (nn.Linear, nn.Conv2d) or (isinstance(module, (nn.Linear, nn.Conv2d)) and _plain(module)):
            yield Layer(name, module)


def _plain(module: nn.Module) -> bool:
    """Whether a subclass computes what its base does."""
    return type(module).forward in (nn.Linear.forward, nn.Conv2d.forward)


def reason_against(layer: Layer) -> str | None:
    """Why a layer stays in float; None if integers may take it."""
    module = layer.module
    if isinstance(module, nn.Conv2d):
        if module.groups != 1:
            return "grouped convolution"
        if isinstance(module.padding, str) or module.padding_mode != "zeros":
            return f"padding {module.padding_mode if module.padding_mode != 'zeros' else module.padding!r}"
    if min(module.weight.shape[:2]) < NARROWEST:
        return f"fewer than {NARROWEST} channels"
    return "a row or two an image" if layer.few_rows else None


def produced(x: Tensor) -> torch.dtype:
    """The dtype a layer gives out for an input x: autocast's where it is on, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def float_layer(module: nn.Linear | nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What the module computes, with another weight and, if it is given, another bias."""
    bias = module.bias if bias is None else bias
    if isinstance(module, nn.Linear):
        return F.linear(x, weight, bias)
    return cast("Tensor", module._conv_forward(x, weight, bias))  # which knows every padding mode


def leaves_python() -> bool:
    """Whether the network is being traced for another runtime, which knows standard operators only."""
    return torch._C._get_tracing_state() is not None or torch.compiler.is_exporting()


def part_of(module: nn.Linear | nn.Conv2d, start: int, end: int) -> nn.Conv2d:
    """A convolution that is the module on some of its input channels; the first has the bias."""
    if not isinstance(module, nn.Conv2d):
        raise UsageError(f"Only convolutions see concatenations; got {type(module).__name__}.")
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation)
    twin = nn.Conv2d(end - start, module.out_channels, *geometry, bias=start == 0 and module.bias is not None)  # type: ignore[arg-type]
    with torch.no_grad():
        twin.weight.copy_(module.weight[:, start:end])
        if twin.bias is not None and module.bias is not None:
            twin.bias.copy_(module.bias)
    return twin.requires_grad_(False)
