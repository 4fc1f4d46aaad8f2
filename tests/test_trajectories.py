"""A recorded path ends where the sampler ends, whatever the solver asks for on its way."""

from __future__ import annotations

import pytest
import torch
from pipelines.tiny import TINIES

from vis_accel.generation import Job
from vis_accel.pipelines import view
from vis_accel.recipe import Recipe
from vis_accel.trajectories import record


@pytest.mark.parametrize(
    "text",
    [
        "dpm(steps=5)",
        "heun(steps=4, schedule='karras')",
        "unipc(steps=5, afs=True)",
        "singlestep(order=3, fast=True, steps=7)",  # found that points between the knots, computed anew, were not known again
    ],
)
def test_a_path_has_a_point_for_every_knot(text: str) -> None:
    pipe = TINIES["DDPMPipeline"].build()
    pipe.set_progress_bar_config(disable=True)
    solver = Recipe.parse(text).methods[0]
    with torch.no_grad():
        path = record(pipe, solver, Job(), range(3), 2)  # type: ignore[arg-type]
    knots = solver.knots(None, view(pipe).noise)  # type: ignore[attr-defined]
    assert path.sigmas == knots
    assert [len(point) for point in path.points] == [3] * len(knots)
    assert len(path.denoised) == len(knots) - 1
    assert bool(path.points[-1].isfinite().all())
