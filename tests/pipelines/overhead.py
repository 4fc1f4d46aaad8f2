"""What a step of the stand-in costs on the host, beside diffusers' DPMSolverMultistepScheduler: python tests/pipelines/overhead.py

The denoiser is free, so that all the time is the scheduler's. Processor time is counted, and the two alternate: a busy machine slows both.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch


def seconds_per_step(scheduler: Any, steps: int, shape: tuple[int, ...]) -> float:
    """The loop alone: planning is once a run."""
    scheduler.set_timesteps(steps)
    x, output = torch.zeros(shape), torch.zeros(shape)
    start = time.thread_time()
    for t in scheduler.timesteps:
        x = scheduler.step(output, t, x, return_dict=False)[0]
    return (time.thread_time() - start) / steps


def measure(recipe: str = "dpmpp", steps: int = 20, runs: int = 60, shape: tuple[int, ...] = (2, 4, 8, 8)) -> tuple[float, float, float]:
    """(ours, theirs, median ratio), seconds a step."""
    import diffusers

    from vis_accel.recipe import Recipe
    from vis_accel.samplers import NoiseModel
    from vis_accel.samplers.scheduler import SolverScheduler

    source: Any = diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing")
    (solver,) = Recipe.parse(recipe).methods
    ours = SolverScheduler(solver, NoiseModel.from_config(source.config), source, object())  # type: ignore[arg-type]
    pairs = [(seconds_per_step(ours, steps, shape), seconds_per_step(source, steps, shape)) for _ in range(runs)][3:]
    a, b = (statistics.median(column) for column in zip(*pairs, strict=True))
    return a, b, statistics.median(mine / stock for mine, stock in pairs)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for recipe in ("ddim", "dpmpp", "unipc", "ddim(eta=1.0)"):
        ours, theirs, ratio = measure(recipe)
        print(f"{recipe:14s} {1e6 * ours:7.0f} us a step, DPMSolverMultistepScheduler {1e6 * theirs:7.0f} us, ratio {ratio:.2f}")
