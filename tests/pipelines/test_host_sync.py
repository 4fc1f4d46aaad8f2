"""A step never waits for the device: nothing in it reads a tensor's value on the host."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pipelines.tiny import BETAS
from torch import Tensor

from vis_accel.recipe import Recipe
from vis_accel.samplers import NoiseModel
from vis_accel.samplers.scheduler import SolverScheduler

READS = ("item", "tolist", "numpy", "cpu", "__float__", "__int__", "__bool__", "__index__", "__array__", "nonzero")
SOLVERS = ("ddim", "ddim(eta=1.0)", "ddpm", "euler", "heun", "dpm(order=3)", "dpm(prediction='noise')", "unipc(order=3)")


def stand_in(text: str, kind: str) -> SolverScheduler:
    import diffusers

    source: Any = diffusers.DDIMScheduler(**BETAS) if kind == "vp" else diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    (solver,) = Recipe.parse(text).methods
    return SolverScheduler(solver, NoiseModel.from_config(source.config), source, object())  # type: ignore[arg-type]


def run(scheduler: SolverScheduler, monkeypatch: pytest.MonkeyPatch, reads: list[str]) -> Tensor:
    scheduler.set_timesteps(20)
    times, x = list(scheduler.timesteps), torch.linspace(-1, 1, 2 * 4 * 4).reshape(2, 1, 4, 4)
    for i, t in enumerate(times):
        if i == 1:  # a stochastic solver may look at the first latent, once
            for name in READS:
                monkeypatch.setattr(Tensor, name, _noting(name, getattr(Tensor, name), reads))
        x = scheduler.step(0.5 * x, t, x).prev_sample
    monkeypatch.undo()
    return x


def _noting(name: str, read: Any, reads: list[str]) -> Any:
    def noting(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        reads.append(name)
        return read(self, *args, **kwargs)

    return noting


@pytest.mark.parametrize("kind", ["vp", "flow"])
@pytest.mark.parametrize("text", SOLVERS)
def test_no_step_reads_a_value(text: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[str] = []
    assert run(stand_in(text, kind), monkeypatch, reads).isfinite().all()
    assert reads == []


def test_a_read_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler, reads = stand_in("euler", "vp"), list[str]()
    step = scheduler.step

    def reading(output: Tensor, t: Any, sample: Tensor) -> Any:
        return step(output * float(sample.abs().max() > -1), t, sample)

    monkeypatch.setattr(scheduler, "step", reading)
    run(scheduler, monkeypatch, reads)
    assert set(reads) >= {"__float__"}
