"""The integer kernels compute what whole numbers give, to the last bit of the float scales; and they pass through torch.compile."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vis_accel.precision import kernels
from vis_accel.precision.layers import Layer
from vis_accel.precision.probe import slower
from vis_accel.precision.rounding import Range, channel_scales, round_activation, round_weight

pytestmark = pytest.mark.skipif(kernels.supported() is not None, reason=str(kernels.supported()))

MODULES = {
    "linear": lambda: nn.Linear(32, 48),
    "linear without bias": lambda: nn.Linear(48, 16, bias=False),
    "convolution": lambda: nn.Conv2d(16, 32, 3, padding=1),
    "strided": lambda: nn.Conv2d(16, 16, 3, stride=2, padding=(1, 0), bias=False),
    "dilated": lambda: nn.Conv2d(16, 24, 3, dilation=2, padding=2),
    "pointwise": lambda: nn.Conv2d(32, 16, 1),
}


def inputs(module: nn.Module) -> Tensor:
    if isinstance(module, nn.Linear):
        return torch.randn(3, 7, module.in_features)
    assert isinstance(module, nn.Conv2d)
    return torch.randn(2, module.in_channels, 9, 8)


def reference(module: nn.Module, whole: Tensor, weight: Tensor, scales: Tensor, found: Range) -> Tensor:
    """The sum in 64-bit integers, then the scales in double precision."""
    x, w = (whole.long() - found.zero), weight.long()
    if isinstance(module, nn.Linear):
        sums = x @ w.t()
        bias = 0 if module.bias is None else module.bias.double()
        return sums.double() * (found.scale * scales.double()) + bias
    assert isinstance(module, nn.Conv2d)
    sums = nn.functional.conv2d(x.double(), w.double(), None, module.stride, module.padding, module.dilation)  # exact: below 2^53
    bias = 0 if module.bias is None else module.bias.double().reshape(-1, 1, 1)
    return sums * (found.scale * scales.double()).reshape(-1, 1, 1) + bias


@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_the_kernel_is_the_sum_of_whole_numbers(name: str) -> None:
    torch.manual_seed(1)
    module = MODULES[name]()
    x, scales = inputs(module), channel_scales(module.weight)
    weight, found = round_weight(module.weight, scales), Range.of(float(x.min()), float(x.max()))
    packed = kernels.pack(module, weight, scales)
    whole = round_activation(x, found.scale, found.zero).to(torch.uint8)
    scale, zero = torch.tensor(found.scale), torch.tensor(found.zero, dtype=torch.int32)
    wanted = reference(module, whole, weight, scales, found)
    torch.testing.assert_close(packed(whole, scale, zero, torch.float32).double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(packed(whole, scale, zero, torch.bfloat16).double(), wanted, rtol=1e-2, atol=1e-2)
    other = packed(whole, scale * 2, zero, torch.float32)  # the scale is an argument: tables of scales work
    bias = 0 if module.bias is None else module.bias.reshape(-1, *[1] * (2 * isinstance(module, nn.Conv2d)))
    torch.testing.assert_close(other - bias, 2 * (packed(whole, scale, zero, torch.float32) - bias), rtol=1e-4, atol=1e-4)
    packed.free()


def test_the_largest_sums_do_not_overflow() -> None:
    module = nn.Linear(4096, 16, bias=False)
    weight = torch.full((16, 4096), 127, dtype=torch.int8)
    packed = kernels.pack(module, weight, torch.ones(16))
    found = packed(torch.full((4, 4096), 255, dtype=torch.uint8), torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), torch.float32)
    packed.free()
    assert torch.equal(found, torch.full((4, 16), 255.0 * 127 * 4096))


def test_a_freed_layer_is_gone() -> None:
    module = nn.Linear(16, 16)
    scales = channel_scales(module.weight)
    packed = kernels.pack(module, round_weight(module.weight, scales), scales)
    packed.free()
    with pytest.raises(KeyError):
        packed(torch.zeros(2, 16, dtype=torch.uint8), torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), torch.float32)


def test_the_probe_prefers_integers_for_a_large_product() -> None:
    large = Layer("large", nn.Linear(1024, 1024), (2048, 1024))
    assert not slower(large)
    assert slower(large) is slower(Layer("again", nn.Linear(1024, 1024), (2048, 1024)))  # asked once for a shape
