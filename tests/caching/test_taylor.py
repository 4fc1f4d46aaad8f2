"""TaylorSeer: exact on features that are polynomials in time; order 0 is plain reuse; every transformer it knows."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from caching.deeper import TRANSFORMERS, deeper, latents
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vis_accel import NotApplicableError, accelerate
from vis_accel.caching.gate import Gate
from vis_accel.caching.taylor import Taylor, weights
from vis_accel.clock import Clock
from vis_accel.handle import Handle
from vis_accel.pipelines import view


@settings(max_examples=60, deadline=None)
@given(
    times=st.lists(st.integers(-40, 40), min_size=1, max_size=4, unique=True),
    at=st.integers(-40, 40),
    coefficients=st.lists(st.floats(-2, 2), min_size=4, max_size=4),
)
def test_weights_are_exact_on_polynomials(times: list[int], at: int, coefficients: list[float]) -> None:
    def polynomial(t: float) -> float:
        return sum(c * (t / 10) ** k for k, c in enumerate(coefficients[: len(times)]))

    found = weights(times, at)
    assert sum(found) == pytest.approx(1, abs=1e-6 * sum(map(abs, found)))
    value = sum(w * polynomial(t) for w, t in zip(found, times, strict=True))
    assert value == pytest.approx(polynomial(at), abs=1e-9 * sum(abs(w) * 1000 for w in found))


def with_polynomial_branches(pipe: Any, degree: int, time: str) -> Handle:
    """The pipeline with branches that say nothing of their input: a polynomial of the time variable."""
    seen = view(pipe)
    clock = Clock(pipe, lambda: seen.noise)
    with Handle.building(pipe, "polynomials") as handle:
        clock.watch(handle)
        for b, block in enumerate(seen.denoiser.transformer_blocks):
            for k, branch in enumerate((block.attn1, block.ff)):

                def forward(hidden: Tensor, *args: Any, b: int = b, k: int = k, **kwargs: Any) -> Tensor:
                    t = math.log(clock.now().sigma) / 3 if time == "log-sigma" else clock.now().sigma / 100
                    value = sum((b - k + 0.3 * i - 0.4) * t**i for i in range(degree + 1))
                    return torch.full_like(hidden, value)

                handle.swap_forward(branch, forward)
    return handle


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
@pytest.mark.parametrize(("sampler", "time"), [("ddim(steps=14)", "sigma"), ("heun(steps=7)", "log-sigma")])
def test_features_that_are_polynomials_in_time_are_forecast_exactly(degree: int, sampler: str, time: str) -> None:
    pipe = deeper("DiTPipeline")
    with with_polynomial_branches(pipe, degree, time):
        with accelerate(pipe, sampler):
            plain = latents(pipe)
        away = {}
        for order in range(4):
            with accelerate(pipe, f"taylor(order={order}, time='{time}', full=(1, 2, 3, 4, 5, 8)) + {sampler}") as handle:
                away[order] = float((latents(pipe) - plain).abs().max() / plain.abs().max())
                assert handle.report()["calls reused"] >= 4
    assert all(away[order] < 1e-9 for order in range(degree, 4)), away
    assert all(away[order] > 1e-7 for order in range(degree)), away


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_an_interval_of_one_changes_nothing_and_three_does(name: str) -> None:
    pipe = deeper(name)
    plain = latents(pipe)
    with accelerate(pipe, "taylor(interval=1)") as handle:
        assert torch.equal(latents(pipe), plain)
        assert handle.report()["calls reused"] == 0
    with accelerate(pipe, "taylor") as handle:
        changed = latents(pipe)
        assert changed.isfinite().all()
        assert not torch.equal(changed, plain)
        halves = 2 if name.startswith("Flux") else 1  # which calls its network once for each
        assert handle.report() == {"calls reused": 4 * halves, "calls in full": 6 * halves}  # 0 1 2 . . 5 . . 8 9


@pytest.mark.parametrize("name", TRANSFORMERS)
@torch.no_grad()
def test_branches_of_the_same_call_give_the_same_answer(name: str) -> None:
    """What the sources make, served back at the same input, is the full forward: nothing else depends on what is left out."""
    pipe = deeper(name)
    network, gate = view(pipe).denoiser, Gate()
    caught: list[Any] = []
    hook = network.register_forward_pre_hook(lambda m, args, kwargs: caught.append((args, kwargs)), with_kwargs=True)
    latents(pipe, steps=2)
    hook.remove()
    args, kwargs = caught[0]
    plain = network(*args, **kwargs)[0]
    with Handle.building(pipe, "taylor") as handle:
        Taylor().install(handle, network, gate)
    gate.open(None)
    assert torch.equal(network(*args, **kwargs)[0], plain)
    made = gate.close()
    ran: list[object] = []
    for block in network.transformer_blocks:
        ran_hook = (block.attn1 if hasattr(block, "attn1") else block.attn).to_q
        ran_hook.register_forward_pre_hook(lambda *_: ran.append(1))
    gate.open(made)
    torch.testing.assert_close(network(*args, **kwargs)[0], plain, rtol=1e-12, atol=1e-12)
    assert not ran
    handle.remove()


def test_order_zero_serves_the_last_outputs_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []
    serve = Taylor.serve

    def note(self: Taylor, moment: Any, past: Any) -> Any:
        found = serve(self, moment, past)
        served.append(found is None or all(a is b for a, b in zip(found, past.nodes[-1].made, strict=True)))
        return found

    monkeypatch.setattr(Taylor, "serve", note)
    pipe = deeper("DiTPipeline", torch.bfloat16)
    with accelerate(pipe, "taylor(order=0)"):
        latents(pipe)
    assert served
    assert all(served)


def test_an_infinite_noise_level_is_no_node() -> None:
    pipe = deeper("StableDiffusion3Pipeline")
    nodes: list[float] = []
    with accelerate(pipe, "taylor(full=(1, 4)) + euler(steps=10)") as handle:
        hook = pipe.transformer.register_forward_pre_hook(lambda *_: nodes.append(pipe.scheduler.position().levels[0]))
        assert latents(pipe).isfinite().all()
        hook.remove()
        assert nodes[0] == 1e6
        assert handle.report() == {"calls reused": 5, "calls in full": 5}  # 0, 1, 4, 8, 9


def test_unets_are_refused() -> None:
    with pytest.raises(NotApplicableError, match="knows DiTTransformer2DModel") as caught:
        accelerate(deeper("DDIMPipeline"), "taylor")
    assert caught.value.hint == "for U-Nets: deepcache"
