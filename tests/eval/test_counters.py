"""Counters: calls and rows of a module, multiply-accumulates against arithmetic, peak memory against a known allocation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vis_accel.errors import RunError, UsageError
from vis_accel.eval.counters import CallCounter, WorkCounter, macs, peak_memory


class Denoiser(nn.Module):
    def forward(self, sample: Tensor, timestep: Tensor | float = 0.0) -> Tensor:
        return sample


def test_calls_and_rows_are_counted_however_they_are_passed() -> None:
    net = Denoiser()
    with CallCounter(net) as counter:
        net(torch.zeros(4, 3, 8, 8), 1.0)
        net(sample=torch.zeros(8, 3, 8, 8), timestep=torch.zeros(8))
        net(timestep=torch.zeros(5), sample=torch.zeros(2, 16, 4))
        net([torch.zeros(3, 8, 8)] * 6)
    assert (counter.calls, counter.rows) == (4, 20)
    net(torch.zeros(4, 3, 8, 8))
    assert counter.calls == 4
    with counter:
        net(torch.zeros(1, 3, 8, 8))
    assert (counter.calls, counter.rows) == (1, 1)


def test_a_replaced_forward_is_counted() -> None:
    net = Denoiser()
    vars(net)["forward"] = lambda sample: sample + 1
    with CallCounter(net) as counter:
        net(torch.zeros(2, 3, 8, 8))
    assert counter.rows == 2


def test_rows_dropped_by_a_hook_in_front_are_not_counted() -> None:
    net = Denoiser()
    with CallCounter(net) as before:
        net.register_forward_pre_hook(lambda module, inputs: (inputs[0][:2],), prepend=True)
        with CallCounter(net) as after:
            net(torch.zeros(4, 3, 2, 2))
    assert before.rows == after.rows == 2


def test_the_work_of_a_run_is_that_of_its_calls_each_as_it_is() -> None:
    net = nn.Linear(8, 16)
    with WorkCounter(net) as counter:
        outputs = [net(torch.ones(rows, 8)) for rows in (4, 2, 2)]
    assert counter.macs == 8 * 8 * 16
    assert torch.equal(outputs[0], net(torch.ones(4, 8)))
    assert "forward" not in vars(net)
    own = vars(net)["forward"] = lambda x: x @ torch.ones(8, 3)
    with pytest.raises(TypeError), counter:
        net(torch.ones(5, 8), net(torch.ones(5, 8)))
    assert counter.macs == 5 * 8 * 3
    assert vars(net)["forward"] is own


def test_the_module_is_left_as_it_was_also_after_an_exception() -> None:
    net = Denoiser()
    before = {name: dict(value) if isinstance(value, dict) else value for name, value in vars(net).items()}

    def fail() -> None:
        with CallCounter(net) as counter:
            assert counter.calls == 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert {name: dict(value) if isinstance(value, dict) else value for name, value in vars(net).items()} == before


def test_two_counters_nest_and_one_does_not_with_itself() -> None:
    net = Denoiser()
    with CallCounter(net) as outer:
        net(torch.zeros(1, 3, 2, 2))
        with CallCounter(net) as inner:
            net(torch.zeros(1, 3, 2, 2))
        with pytest.raises(UsageError, match="already counting"), outer:
            pass
    assert (outer.calls, inner.calls) == (2, 1)
    with CallCounter(net), pytest.raises(UsageError, match="without a batch"):
        net(torch.tensor(1.0))


def test_macs_are_arithmetic() -> None:
    assert macs(nn.Linear(8, 16), torch.zeros(4, 8)) == 4 * 8 * 16
    assert macs(nn.Conv2d(3, 8, 3, padding=1), torch.zeros(2, 3, 10, 10)) == 2 * 8 * 100 * 27
    d, n = 32, 10
    layer = nn.TransformerEncoderLayer(d, 4, dim_feedforward=64, batch_first=True).eval()
    expected = n * (3 * d * d + d * d + 2 * d * 64) + 2 * n * n * d
    fast = torch.backends.mha.get_fastpath_enabled()
    assert macs(layer, torch.zeros(1, n, d)) == expected  # the fused layer would have counted 0
    assert torch.backends.mha.get_fastpath_enabled() == fast
    with pytest.raises(RunError, match="could be counted"):
        macs(nn.ReLU(), torch.zeros(4))


def test_peak_memory_sees_what_is_held_only_for_a_moment() -> None:
    megabytes = 200

    def hold() -> None:
        block = torch.ones(megabytes * 2**18)  # four bytes each
        for _ in range(3):
            block.add_(1)

    def nothing() -> None:
        pass

    idle, held = peak_memory(nothing), peak_memory(hold)
    assert 0.9 * megabytes < (held - idle) / 2**20 < 1.3 * megabytes
    with pytest.raises(UsageError, match="meta"):
        peak_memory(nothing, device="meta")
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0)
