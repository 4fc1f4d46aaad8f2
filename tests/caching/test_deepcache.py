"""DeepCache: the cheap path with everything fresh is the full one, at every cut; it leaves the deep part out; plans."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caching.deeper import UNETS, Watched, deeper, latents, pixel_unet, text_unet
from torch import Tensor, nn

from vis_accel import ConflictError, NotApplicableError, UsageError, accelerate
from vis_accel.caching.deepcache import Deepcache
from vis_accel.caching.gate import Gate
from vis_accel.caching.schedule import centred, exchange
from vis_accel.handle import Handle


def asked(network: nn.Module, size: int = 8, batch: int = 2) -> Tensor:
    make = torch.Generator().manual_seed(5)
    x = torch.randn(batch, network.config.in_channels, size, size, generator=make, dtype=torch.float64)
    text = {} if "2DModel" in type(network).__name__ else {"encoder_hidden_states": torch.randn(batch, 3, 8, generator=make).double()}
    found: Tensor = network(x, torch.tensor(300), **text).sample
    return found


def cut(network: nn.Module, branch: int) -> tuple[Handle, Gate]:
    gate = Gate()
    with Handle.building(network, "cut") as handle:
        Deepcache(branch=branch).install(handle, network, gate)
    return handle, gate


@pytest.mark.parametrize(("make", "layers"), [(pixel_unet, 9), (lambda: pixel_unet(1), 6), (text_unet, 9)])
@torch.no_grad()
def test_all_fresh_the_cheap_path_is_the_full_one(make: Any, layers: int) -> None:
    torch.manual_seed(3)
    network = make().double().eval()
    plain, before = asked(network), {name: dict(vars(module)) for name, module in network.named_modules()}
    for branch in range(layers):
        handle, gate = cut(network, branch)
        gate.open(None)
        assert torch.equal(asked(network), plain)
        made = gate.close()
        gate.open(made)
        assert torch.equal(asked(network), plain), branch
        gate.close()
        gate.open([torch.zeros_like(made[0]) if isinstance(made[0], Tensor) else (torch.zeros_like(made[0][0]),)])
        assert not torch.allclose(asked(network), plain)  # it is the kept tensor that is used
        gate.close()
        handle.remove()
        assert {name: dict(vars(module)) for name, module in network.named_modules()} == before


@torch.no_grad()
def test_the_cheap_path_runs_the_shallow_layers_alone() -> None:
    network = pixel_unet().double().eval()
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}
    ran: set[str] = set()
    for name, module in convolutions.items():
        module.register_forward_pre_hook(lambda *_, name=name: ran.add(name))
    handle, gate = cut(network, 1)
    gate.open(None)
    asked(network)
    made = gate.close()
    assert ran == set(convolutions)
    ran.clear()
    gate.open(made)
    asked(network)
    handle.remove()
    kept = ("conv_in", "conv_out", "down_blocks.0.resnets.0.", "up_blocks.2.resnets.1.", "up_blocks.2.resnets.2.")
    assert ran == {name for name in convolutions if name.startswith(kept)}


@torch.no_grad()
def test_sizes_that_do_not_halve_evenly() -> None:
    network = text_unet().double().eval()
    plain = asked(network, size=10)
    for branch in (0, 2, 3, 5):
        handle, gate = cut(network, branch)
        gate.open(None)
        asked(network, size=10)
        gate.open(gate.close())
        assert torch.equal(asked(network, size=10), plain)
        handle.remove()


@pytest.mark.parametrize("name", UNETS)
def test_an_interval_of_one_changes_nothing(name: str) -> None:
    pipe = deeper(name)
    with accelerate(pipe, "ddim(steps=9)"):
        plain = latents(pipe)
    with accelerate(pipe, "ddim(steps=9) + deepcache(interval=1)") as handle:
        assert torch.equal(latents(pipe), plain)
        assert handle.report()["calls in full"] == 9
    with accelerate(pipe, "ddim(steps=9) + deepcache"):
        assert not torch.equal(latents(pipe), plain)


@pytest.mark.parametrize(
    ("options", "full"),
    [
        ("", (0, 3, 6, 9, 10, 11)),
        ("interval=5", (0, 5, 10, 11)),
        ("full=(2, 3)", (0, 2, 3, 10, 11)),
        ("full=()", (0, 10, 11)),
        ("centre=0.0, power=2.0", (0, 1, 3, 7, 10, 11)),
        ("centre=0.5, power=1.0", (0, 3, 6, 9, 10, 11)),
    ],
)
def test_plans(options: str, full: tuple[int, ...]) -> None:
    pipe = deeper("DDIMPipeline")
    with accelerate(pipe, f"deepcache({options}) + ddim(steps=12)"), Watched(pipe) as watched:
        latents(pipe)
    assert tuple(i for i, deep in enumerate(watched.full) if deep) == full


def test_the_centre_draws_full_calls_near() -> None:
    assert centred(30, 3, 0.3, 1.0) == tuple(range(0, 30, 3))
    near = centred(30, 3, 0.5, 2.0)
    assert near[0] == 0
    assert sum(10 <= call <= 20 for call in near) > sum(10 <= call <= 20 for call in range(0, 30, 3))


def test_the_search_finds_a_minimum_of_the_error() -> None:
    wanted = {4, 9, 13}
    asked: list[tuple[int, ...]] = []

    def error(full: tuple[int, ...]) -> float:
        asked.append(full)
        return float(sum(min(abs(call - other) for other in full) for call in wanted))

    assert exchange(20, (0, 3, 6, 12, 19), error, rounds=9) == ((4, 9, 13), 0.0)
    assert all(0 < call < 18 for full in asked for call in full)


@pytest.mark.parametrize(
    ("options", "message"),
    [("full=(3, 2)", "must rise"), ("full=(1,), interval=2", "interval"), ("full=(1,), centre=0.5", "centre"), ("interval=0", ">= 1")],
)
def test_plans_that_contradict_themselves_are_refused(options: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        accelerate(deeper("DDIMPipeline"), f"deepcache({options})")


def test_a_network_that_it_does_not_know_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="knows UNet2DModel, UNet2DConditionModel") as caught:
        accelerate(deeper("DiTPipeline"), "deepcache")
    assert caught.value.hint is not None
    assert "taylor" in caught.value.hint
    with pytest.raises(NotApplicableError, match=r"9 layers to cut at, 0 \.\. 8; got 9"):
        accelerate(deeper("DDIMPipeline"), "deepcache(branch=9)")
    with pytest.raises(ConflictError, match="both replace"):
        accelerate(deeper("DDIMPipeline"), "deepcache + taylor")
