"""The arithmetic of rounding: ranges, scales, and what clipping may cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vis_accel.precision.rounding import (
    Range,
    best_range,
    best_scales,
    channel_scales,
    fake_activation,
    fake_weight,
    levels,
    round_activation,
    round_weight,
)  # fmt: skip

finite = st.floats(-1e4, 1e4, allow_subnormal=False)


@given(finite, finite, st.integers(2, 8))
@settings(deadline=None)
def test_a_range_covers_its_ends_and_zero_exactly(one: float, other: float, bits: int) -> None:
    low, high = min(one, other), max(one, other)
    found = Range.of(low, high, bits)
    assert 0 <= found.zero <= levels(bits)
    x = torch.tensor([min(low, 0.0), 0.0, max(high, 0.0)])
    rounded = fake_activation(x, found.scale, found.zero, bits)
    assert rounded[1] == 0
    assert (rounded - x).abs().max() <= found.scale * 1.001  # half a step of its own, half of the zero point's


def test_inside_the_range_the_error_is_half_a_step() -> None:
    x = torch.linspace(-3, 5, 1001)
    found = Range.of(-3, 5)
    assert (fake_activation(x, found.scale, found.zero) - x).abs().max() <= found.scale / 2 * 1.001 + abs(3 - found.zero * found.scale)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_round_by_channel(bits: int) -> None:
    weight = torch.randn(5, 7, 3, 3) * torch.tensor([1e-3, 1.0, 10.0, 0.0, 5.0]).reshape(-1, 1, 1, 1)
    scales = channel_scales(weight, bits)
    whole = round_weight(weight, scales, bits)
    assert whole.dtype == torch.int8
    assert whole.abs().max() <= 2 ** (bits - 1) - 1
    assert torch.equal(whole[3], torch.zeros_like(whole[3]))
    steps = scales.reshape(-1, 1, 1, 1)
    assert ((fake_weight(weight, scales, bits) - weight).abs() <= steps / 2 * 1.001).all()


def test_rounding_twice_is_rounding_once() -> None:
    weight, x = torch.randn(8, 16), torch.randn(100)
    scales, found = channel_scales(weight), Range.of(float(x.min()), float(x.max()))
    once = fake_weight(weight, scales)
    torch.testing.assert_close(fake_weight(once, scales), once)
    one = fake_activation(x, found.scale, found.zero)
    torch.testing.assert_close(fake_activation(one, found.scale, found.zero), one)


def test_clipping_loses_less_and_never_more() -> None:
    torch.manual_seed(0)
    x = torch.cat([torch.randn(10_000), torch.tensor([40.0])])  # one outlier
    plain, best = Range.of(float(x.min()), 40.0, 4), best_range(x, float(x.min()), 40.0, 4)
    loss = [float((fake_activation(x, r.scale, r.zero, 4) - x).abs().pow(2.4).mean()) for r in (plain, best)]
    assert loss[1] < 0.8 * loss[0]
    weight = torch.randn(4, 500)
    weight[0, 0] = 30.0
    losses = [(fake_weight(weight, s, 4) - weight).abs().pow(2.4).mean(1) for s in (channel_scales(weight, 4), best_scales(weight, 4))]
    assert (losses[1] <= losses[0]).all()
    assert losses[1][0] < losses[0][0]


def test_what_is_rounded_is_not_changed_in_place() -> None:
    x = torch.randn(10)
    before = x.clone()
    round_activation(x, 0.1, 128)
    assert torch.equal(x, before)
