"""`search`: the knots that suit this model, this solver and this number of calls, found on the model itself and tried on fresh seeds.

    found = search("cifar10-dit", "dpm", calls=6)
    found.recipe                                   # dpm(schedule=(14.6, ...)), a recipe like any other

A teacher (Heun on a fine Karras grid) makes some images through the whole pipeline, guidance and all, and its path is kept. Dynamic
programming over it proposes knots (`samplers.searched`); the best of these and of the solver's fixed schedules is refined on whole runs.
All of them then run on seeds the search has not seen, and are ranked by the root mean square distance of their samples from the teacher's
on the same seeds. A search that finds nothing better than a fixed schedule says so.

Cost     in calls: (2 x grid - 1) for each of `images` + `trial`, then calls x (`moves` + 14) for each of 32 images and calls x 15 for each
         of `trial`.
Seeds    lie a million away from the ones asked for, so that a benchmark of the recipe does not score what it was fitted to.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.files import write_atomic
from vis_accel.generation import Job
from vis_accel.pipelines import view
from vis_accel.recipe import Recipe
from vis_accel.samplers import NoiseModel, Solver, schedules
from vis_accel.samplers.heun import Heun
from vis_accel.samplers.searched import best_path, check_searchable, knots_of, refine, step_errors
from vis_accel.samplers.stored import Stored
from vis_accel.trajectories import apart, record
from vis_accel.zoo.opened import Placement, open_pipeline

__all__ = ["Found", "Tried", "search"]

FIXED = ("trailing", "linspace", "quadratic", "beta", "logsnr", "karras")
SEEDS_APART = 1_000_000
MOST_REFINED = 32  # images of a run in the refinement
POWERS = (1.0, 2.0)  # of the errors that are summed: the second minds the largest more


@dataclass(frozen=True)
class Tried:
    """One candidate: its name, its knots, and how far its samples end from the teacher's."""

    name: str
    knots: tuple[float, ...]
    error: float


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        model, model_sha256: what was searched on.
        network: hash of the denoiser's weights, which `schedule="searched"` looks for.
        recipe: the solver with the best knots.
        tried: every candidate, the best first.
        settings: images, seeds, grid and guidance of the search.
    """

    model: str
    model_sha256: str
    network: str
    recipe: str
    tried: tuple[Tried, ...]
    settings: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON, atomically."""
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    def short(self) -> str:
        """The recipe by which the knots are found again."""
        solver: Any = Recipe.parse(self.recipe).methods[0]
        return str(replace(solver, steps=self.settings["calls"], schedule="searched"))

    def stored(self) -> Stored:
        """The best knots, in the form that `samplers.stored` keeps."""
        solver: Any = Recipe.parse(self.recipe).methods[0]
        best, settings = self.tried[0], self.settings
        made = (
            f"{best.name}; {settings['images']} images, guidance {settings['job']['guidance_scale']}, teacher of {settings['grid']} steps"
        )
        return Stored(network=self.network, solver=solver.plain(), steps=settings["calls"], knots=best.knots, made=made)


def search(
    model: str,
    solver: str = "dpm",
    calls: int = 6,
    *,
    images: int = 256,
    trial: int = 64,
    moves: int = 80,
    grid: int = 40,
    job: Job | None = None,
    batch: int = 64,
    device: str | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Found:
    """Searches knots.

    Args:
        model: what `load` takes.
        solver: a sampler's recipe without steps or schedule: "dpm", "unipc(order=3)".
        calls: network evaluations a run (rows double with guidance).
        images: of the teacher, for the search.
        trial: further images, on which the candidates are compared.
        moves: runs of the refinement, over at most 32 of the teacher's images.
        grid: steps of the teacher.
        job: what is generated; None: what the model's card pins.
        batch: images at a time.
        device, threads: where.
        progress: receives a line now and then.

    Raises:
        UsageError: numbers that make no sense; a recipe that is not one sampler, or has steps or knots of its own.
        NotApplicableError: a solver with several calls a step, or a model whose first sigma is infinite.
    """
    method = _solver(solver)
    if not 2 <= calls < grid:
        message = f"calls must be at least 2 and below the teacher's {grid} steps; got {calls}."
        raise UsageError(message, hint=f"--calls 2 .. {grid - 1}")
    if min(images, trial, moves, batch) < 1:
        raise UsageError(f"images, trial, moves and batch must be at least 1; got {images}, {trial}, {moves} and {batch}.")
    check_searchable(method)
    opened = open_pipeline(model, job or Job(), Placement(device=device, threads=threads))
    pipeline, wanted = opened.pipeline, opened.job
    wanted.check(pipeline)
    wanted = replace(wanted, seed=wanted.seed + SEEDS_APART)
    pipeline.set_progress_bar_config(disable=True)
    teacher = Heun(steps=grid, schedule="karras")
    noise = view(pipeline).noise
    if not noise.starts_finite:
        raise NotApplicableError("A search needs a model with a finite first sigma.", hint="flow models: shift= is what there is to tune")
    candidates = _fixed(calls, noise)
    network = view(pipeline).fingerprint
    path = record(pipeline, teacher, wanted, range(images), batch, lambda line: progress(f"teacher, {line}"))
    progress(f"errors of the steps of {method} between {grid + 1} knots")
    errors = step_errors(method, path)
    candidates |= {f"searched, power {power:g}": knots_of(best_path(errors, calls, power=power), path.sigmas) for power in POWERS}
    some = range(min(images, MOST_REFINED))
    taught = path.points[-1][: len(some)]

    def distance(knots: tuple[float, ...]) -> float:
        return apart(record(pipeline, replace(method, schedule=knots), wanted, some, batch).points[-1], taught)

    start = min(candidates.values(), key=distance)
    candidates["searched, refined"], error = refine(distance, start, evaluations=moves)
    progress(f"refined on {len(some)} images to {error:.4f}")
    fresh = range(images, images + trial)
    target = record(pipeline, teacher, wanted, fresh, batch).points[-1]
    tried = []
    for name, knots in candidates.items():
        end = record(pipeline, replace(method, schedule=knots), wanted, fresh, batch).points[-1]
        tried.append(Tried(name, knots, apart(end, target)))
        progress(f"{name}: {tried[-1].error:.4f}")
    tried.sort(key=lambda one: one.error)
    settings = {"images": images, "trial": trial, "moves": moves, "grid": grid, "calls": calls, "job": asdict(wanted)}
    return Found(model, opened.sha256, network, str(replace(method, schedule=tried[0].knots)), tuple(tried), settings)


def _fixed(calls: int, noise: NoiseModel) -> dict[str, tuple[float, ...]]:
    """The fixed schedules this model can have, each with and without a call at its first knot (`Solver.afs`)."""
    found = {}
    for name in FIXED:
        with contextlib.suppress(NotApplicableError):
            found[name] = schedules.create(name, calls, noise)
            found[f"{name}, afs"] = schedules.create(name, calls + 1, noise)[1:]
    return found


def _solver(text: str) -> Solver:
    methods = Recipe.parse(text).methods
    if len(methods) != 1 or not isinstance(methods[0], Solver):
        raise UsageError(f"A schedule is searched for one sampler; got {text!r}.", hint="dpm, unipc, ipndm, deis ...")
    method = methods[0]
    if method.afs:
        raise UsageError(f"{text!r}: the search tries an analytic first step by itself.", hint=f"--sampler '{replace(method, afs=False)}'")
    if method.steps is not None or method.schedule != "auto":
        raise UsageError(f"{text!r} has steps or knots of its own; the search finds them.", hint=f"--sampler {method.name} --calls 6")
    return method
