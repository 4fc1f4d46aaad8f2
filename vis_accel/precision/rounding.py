"""Numbers in few bits: scales, rounding, and the ranges that lose least. Pure functions.

Weights       symmetric, a scale for each output channel: w ~ s_w[c] w_q, w_q in -(2^(b-1) - 1) .. 2^(b-1) - 1.
Activations   affine, one scale and zero point: x ~ s_x (x_q - z), x_q in 0 .. 2^b - 1; 0 is always such a value, so padding is exact.
Product       y = s_x s_w[c] sum_k (x_q - z) w_q + b: whole numbers inside the sum (Jacob et al. 2018, arXiv:1712.05877, eq. 4).
Clipping      a range is shrunk while that lowers the mean of |x - x~|^2.4 (Nagel et al. 2021, arXiv:2106.08295, sec. 3.1, search over
              ratios; the exponent as in Li et al. 2021, arXiv:2102.05426).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Range",
    "best_range",
    "best_scales",
    "channel_scales",
    "fake_activation",
    "fake_weight",
    "levels",
    "round_activation",
    "round_weight",
]

POWER = 2.4
RATIOS = tuple(1.0 - 0.01 * step for step in range(80))  # 1 down to 0.21


class Range(NamedTuple):
    """Scale and zero point of an activation in `bits` bits."""

    scale: float
    zero: int
    bits: int = 8

    @classmethod
    def of(cls, low: float, high: float, bits: int = 8) -> Range:
        """The range that covers low .. high and 0."""
        low, high = min(low, 0.0), max(high, 0.0)
        scale = max((high - low) / levels(bits), torch.finfo(torch.float32).tiny * 2**20)  # a constant 0 has no scale of its own
        return cls(scale, round(-low / scale), bits)


def levels(bits: int) -> int:
    """Steps between the smallest and the largest of 2^bits numbers."""
    return int(2**bits - 1)


def round_activation(x: Tensor, scale: Tensor | float, zero: Tensor | int, bits: int = 8) -> Tensor:
    """x in whole numbers 0 .. 2^bits - 1, as floats: any shape."""
    # in place on the quotient: uncompiled, every new tensor costs as much as the arithmetic
    return x.float().div(scale).round_().add_(zero).clamp_(0, levels(bits))


def fake_activation(x: Tensor, scale: Tensor | float, zero: Tensor | int, bits: int = 8) -> Tensor:
    """x rounded to the values its whole numbers stand for; in x's dtype."""
    return ((round_activation(x, scale, zero, bits) - zero) * scale).to(x.dtype)


def channel_scales(weight: Tensor, bits: int = 8) -> Tensor:
    """Scales by the largest weight of each output channel: [O, ...] -> float32 [O]."""
    largest = weight.detach().float().flatten(1).abs().amax(1)
    return (largest / int(2 ** (bits - 1) - 1)).clamp_min(torch.finfo(torch.float32).tiny * 2**20)


def round_weight(weight: Tensor, scales: Tensor, bits: int = 8) -> Tensor:
    """[O, ...] and [O] -> whole numbers, int8."""
    top = int(2 ** (bits - 1) - 1)
    steps: Tensor = weight.detach().float() / _along(scales, weight)
    return steps.round_().clamp_(-top, top).to(torch.int8)


def fake_weight(weight: Tensor, scales: Tensor, bits: int = 8) -> Tensor:
    """The weight its whole numbers stand for; in its own dtype."""
    whole = round_weight(weight, scales, bits)
    values: Tensor = whole.float() * _along(scales, weight)
    return values.to(weight.dtype)


def best_scales(weight: Tensor, bits: int = 8) -> Tensor:
    """Scales that lose least, each channel's by a search over clipping ratios: [O, ...] -> float32 [O]."""
    flat, full = weight.detach().float().flatten(1), channel_scales(weight, bits)
    best, least = full.clone(), torch.full_like(full, torch.inf)
    for ratio in RATIOS:
        scales = full * ratio
        loss = (fake_weight(flat, scales, bits) - flat).abs().pow(POWER).mean(1)
        better = loss < least
        best, least = torch.where(better, scales, best), torch.where(better, loss, least)
    return best


def best_range(samples: Tensor, low: float, high: float, bits: int = 8) -> Range:
    """The range that loses least on `samples`, by a search over ratios of low .. high."""
    values, best, least = samples.float().flatten(), Range.of(low, high, bits), float("inf")
    for ratio in RATIOS:
        found = Range.of(low * ratio, high * ratio, bits)
        loss = float((fake_activation(values, found.scale, found.zero, bits) - values).abs().pow(POWER).mean())
        if loss < least:
            best, least = found, loss
    return best


def _along(scales: Tensor, weight: Tensor) -> Tensor:
    """[O] -> [O, 1, ...]."""
    return scales.reshape([-1, *[1] * (weight.ndim - 1)])
