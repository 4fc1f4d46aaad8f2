"""The paths solvers take through a whole pipeline, guidance and all: the state at every knot, for searches and comparisons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vis_accel.errors import UsageError
from vis_accel.generation import Job, generate
from vis_accel.handle import Handle
from vis_accel.pipelines import view
from vis_accel.samplers import NoiseModel, Solver
from vis_accel.samplers.scheduler import SolverScheduler
from vis_accel.samplers.searched import Trajectory, stacked
from vis_accel.samplers.solver import Noise, Past, Solve

__all__ = ["apart", "record"]


def record(pipeline: Any, solver: Solver, job: Job, indices: range, batch: int, told: Callable[[str], None] | None = None) -> Trajectory:
    """The path of `solver` over the images `indices` of `job`.

    Args:
        pipeline: a diffusers pipeline; nothing of it stays changed.
        solver: its steps win over the job's. Of one that raises its noise between knots only the end is its own.
        job: what is generated.
        indices: which images.
        batch: images at a time.
        told: receives a line per batch.
    """
    recorder: Any = _Recorder(solver)
    described = view(pipeline)
    with Handle.building(pipeline, str(solver)) as handle:
        described.install_scheduler(handle, SolverScheduler(recorder, described.noise, pipeline.scheduler, pipeline))
    with handle, torch.no_grad():
        for start in range(indices.start, indices.stop, batch):
            chosen = range(start, min(start + batch, indices.stop))
            generate(pipeline, job, chosen)
            recorder.paths[-1] = recorder.paths[-1].first(len(chosen))  # some guided pipelines step both halves, which are the same
            if told is not None:
                told(f"{solver.name}: {min(start + batch, indices.stop) - indices.start} of {len(indices)} images")
    return stacked(recorder.paths)


def apart(a: Tensor, b: Tensor) -> float:
    """Root mean square difference."""
    return float((a - b).square().mean().sqrt())


def _same(asked: float, knot: float) -> bool:
    """Whether a request is at a knot; some solvers compute the points of a step anew, to the last digits."""
    return math.isclose(asked, knot, rel_tol=1e-9)


class _Recorder:
    """Stands in for a solver, and notes the state and the denoised image at each knot it passes, and the state at the end.

    Dry runs, which have no noise to draw, are not noted.
    """

    def __init__(self, inner: Solver) -> None:
        self.inner, self.name, self.steps, self.schedule = inner, inner.name, inner.steps, inner.schedule
        self.paths: list[Trajectory] = []

    def knots(self, steps: int | None, noise: NoiseModel) -> tuple[float, ...]:
        return self.inner.knots(steps, noise)

    def resumed(self) -> Solver:
        message = "A path is recorded from beginning to end: a restart in the middle would cut it in two."
        raise UsageError(message, hint="guidance-window(restart=False)")

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        run = self.inner.solve(x, sigmas, noise=noise, history=history)
        points: list[Tensor] = []
        denoised: list[Tensor] = []
        try:
            request = next(run)
            while True:
                x, y = yield request
                if points and _same(request[1], sigmas[len(points) - 1]):  # Heun asks again at the corrected point: that one counts
                    points[-1], denoised[-1] = x, y.denoised
                elif _same(request[1], sigmas[len(points)]):
                    points.append(x)
                    denoised.append(y.denoised)
                request = run.send((x, y))
        except StopIteration as end:
            if noise is not None:
                self.paths.append(Trajectory(tuple(sigmas), (*points, end.value), tuple(denoised)))
            image: Tensor = end.value
            return image
