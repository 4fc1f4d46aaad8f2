"""`attention`: one kernel for every attention of the network, the same numbers, and a clear word where there is no such kernel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from precision.targets import NAMES, answer, build, state
from torch import nn
from vit_models.families import images, tiny

from vis_accel import NotApplicableError
from vis_accel.apply import accelerate


def kernels_of(model: nn.Module) -> set[str]:
    with torch.profiler.profile() as profile, torch.no_grad():
        model(images())
    return {event.key for event in profile.key_averages() if "scaled_dot_product" in event.key}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backend", ["flash", "math"])
def test_the_same_numbers_and_the_way_back(name: str, backend: str) -> None:
    target = build(name)
    plain, before = answer(target), state(target)
    with accelerate(target, f"attention(backend={backend!r})"):
        torch.testing.assert_close(answer(target), plain, rtol=1e-4, atol=1e-4)
    assert state(target) == before


def test_it_is_the_kernel_that_was_asked_for() -> None:
    model = tiny("plain")
    with accelerate(model, "attention(backend='math')"):
        assert any("math" in kernel for kernel in kernels_of(model))
    with accelerate(model, "attention"):
        assert any("flash" in kernel for kernel in kernels_of(model))


def test_a_kernel_this_device_lacks_is_refused() -> None:
    model: Any = tiny("plain")
    with pytest.raises(NotApplicableError, match="no such kernel on cpu") as caught:
        accelerate(model, "attention(backend='cudnn')")
    assert "there are: flash, math" in str(caught.value)
    with pytest.raises(NotApplicableError, match="CUDA alone"):
        accelerate(build("dit"), "attention(backend='xformers')")
