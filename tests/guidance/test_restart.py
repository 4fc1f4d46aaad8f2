"""Where guidance jumps, a solver's history is cleared: the run goes on as one that begins there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pipelines.tiny import TINIES
from torch import Tensor

from vis_accel import accelerate
from vis_accel.pipelines import view
from vis_accel.recipe import Recipe
from vis_accel.samplers import NoiseStream, sample
from vis_accel.samplers.scheduler import SolverScheduler
from vis_accel.trajectories import record

TINY = TINIES["DiTPipeline"]
STEPS = 8
LATER = 4  # the knot at which guidance ends: half of the calls


def cut(pipe: Any, solver: str, *, restart: bool = True) -> Tensor:
    with accelerate(pipe, f"guidance-cutoff(share=0.5, restart={restart}) + {solver}"):
        return TINY.call(pipe, guidance=3.0, steps=STEPS)


def in_two_runs(pipe: Any, solver: str) -> Tensor:
    """The guided network to knot 4, and a run of its own over the conditional one from there on."""
    noise = view(pipe).noise
    (method,) = Recipe.parse(solver).methods
    knots = method.knots(STEPS, noise)  # type: ignore[attr-defined]
    x = TINY.start((0, 1)) / noise.alpha(knots[0])
    stream = NoiseStream.from_latent(x)
    for part, guidance in ((knots[: LATER + 1], 3.0), (knots[LATER:], 1.0)):
        with torch.no_grad():
            x = sample(noise.denoiser(TINY.network(pipe, (0, 1), guidance)), method, x, part, noise=stream)  # type: ignore[arg-type]
    return x


def apart(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize(
    "solver",
    [
        "dpm(lower_order_final=False)",
        "dpm(order=3, lower_order_final=False)",
        "deis(lower_order_final=False)",
        "unipc(corrector=False, lower_order_final=False)",
        "ipndm(order=3)",
        "adams",
        "dpm-sde(lower_order_final=False)",
    ],
)
def test_history_is_cleared_at_the_edge(solver: str) -> None:
    pipe = TINY.build()
    wanted = in_two_runs(pipe, solver)
    assert apart(cut(pipe, solver), wanted) < 1e-6
    assert apart(cut(pipe, solver, restart=False), wanted) > 1e-4


@pytest.mark.parametrize("solver", ["euler", "heun", "singlestep", "ddim(eta=1.0)", "restart(low=0.5, high=2.0)"])
def test_solvers_without_a_history_do_not_notice(solver: str) -> None:
    pipe = TINY.build()
    assert torch.equal(cut(pipe, solver), cut(pipe, solver, restart=False))


@pytest.mark.parametrize("solver", ["pndm", "plms", "unipc"])
def test_a_restart_keeps_the_planned_calls(solver: str) -> None:
    """The start of pndm takes twelve calls of 17, and guidance ends within it: the history is cleared behind it."""
    pipe = TINY.build()
    with accelerate(pipe, f"guidance-cutoff(share=0.5, restart=True) + {solver}"), TINY.count(pipe) as counter:
        found = TINY.call(pipe, guidance=3.0, steps=STEPS)
        assert counter.calls == len(pipe.scheduler.requests)
    assert bool(found.isfinite().all())
    assert not torch.equal(found, cut(pipe, solver, restart=False))


def test_a_stock_scheduler_is_left_alone() -> None:
    pipe = TINY.build()
    with accelerate(pipe, "guidance-cutoff(restart=True)"):
        found = TINY.call(pipe, guidance=3.0)
    with accelerate(pipe, "guidance-cutoff(restart=False)"):
        assert torch.equal(TINY.call(pipe, guidance=3.0), found)


def test_nothing_is_cleared_before_the_first_answer() -> None:
    pipe = TINY.build()
    with accelerate(pipe, "dpm"):
        scheduler: SolverScheduler = pipe.scheduler
        scheduler.set_timesteps(4)
        scheduler.clear_history()
        plain = TINY.call(pipe)
    pipe = TINY.build()
    with accelerate(pipe, "dpm"):
        assert torch.equal(TINY.call(pipe), plain)


def test_a_path_that_is_recorded_is_not_cut_in_two() -> None:
    from vis_accel import UsageError
    from vis_accel.generation import Job
    from vis_accel.samplers import create

    pipe = TINY.build(torch.float32)
    job = Job(class_labels=(1, 2), guidance_scale=3.0)
    solver: Any = create("dpm", steps=4)
    with accelerate(pipe, "guidance-cutoff(restart=True)"), pytest.raises(UsageError, match="recorded"):
        record(pipe, solver, job, range(2), 2)
    with accelerate(pipe, "guidance-cutoff(restart=False)"):
        assert len(record(pipe, solver, job, range(2), 2).points) == 5
