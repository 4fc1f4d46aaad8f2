"""`search_window`: the noise levels at which a model needs its guidance, found on the model itself and tried on fresh seeds.

    found = search_window("cifar10-dit", "dpm(steps=10)", images=1000)
    found.recipe                                   # guidance-window(lo=0.38, hi=3.2) + dpm(steps=10)

Between the noise levels of two calls every edge means the same run, so there are few windows to try: first the upper edge with no lower
one (Kynkäänniemi et al. 2024, arXiv:2404.07724: the score depends on it most), then the lower edge under the best upper one. The score is
KID to real images, which is unbiased in the number of images, on the same seeds for every window. The window found and guidance everywhere
are then held against each other on seeds that the search has not seen, with the interval of their paired difference.

Cost     about twice as many runs of `images` as the sampler has calls.
Not      a claim: KID of a few hundred images is coarse. vis-accel bench with --samples 5000 judges the recipe.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel.apply import accelerate
from vis_accel.errors import UsageError
from vis_accel.eval.counters import CallCounter
from vis_accel.eval.kid import kid_difference
from vis_accel.eval.yardstick import FEWEST, Yardstick
from vis_accel.files import write_atomic
from vis_accel.generation import Job, generate
from vis_accel.guidance.window import GuidanceWindow
from vis_accel.pipelines import view
from vis_accel.recipe import Recipe
from vis_accel.samplers import Solver
from vis_accel.schedule_search import SEEDS_APART
from vis_accel.zoo.measured import yardstick_for
from vis_accel.zoo.opened import Placement, open_pipeline

__all__ = ["FoundWindow", "TriedWindow", "search_window"]

EVERYWHERE = GuidanceWindow(lo=0.0, hi=None)


@dataclass(frozen=True)
class TriedWindow:
    """One window: its edges, the rows an image it evaluates, and its scores: KID with its ends, class agreement, precision, recall."""

    lo: float
    hi: float | None
    nfe: float
    scores: dict[str, float | None]

    @property
    def kid(self) -> float:
        """KID to the real images."""
        return float(self.scores["KID"] or 0.0)


@dataclass(frozen=True)
class FoundWindow:
    """What a search found.

    Attributes:
        model, model_sha256: what was searched on.
        recipe: the best window with the sampler.
        tried: every window in the order tried, guidance everywhere first.
        fresh: on seeds of their own: the window, guidance everywhere.
        difference: KID of the first minus KID of the second on those seeds, with its 95% interval: (value, low, high).
        settings: images, sampler and job of the search.
    """

    model: str
    model_sha256: str
    recipe: str
    tried: tuple[TriedWindow, ...]
    fresh: tuple[TriedWindow, TriedWindow]
    difference: tuple[float, float, float]
    settings: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON, atomically."""
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    def verdict(self) -> str:
        """What the fresh seeds say, in words."""
        value, low, high = self.difference
        word = "nearer to the real images" if high < 0 else "farther from the real images" if low > 0 else "not distinguishable"
        return f"{word}: KID {value:+.4f} [{low:+.4f}, {high:+.4f}] against guidance everywhere, {self.settings['images']} images"


def search_window(
    model: str,
    sampler: str = "dpm(steps=10)",
    *,
    images: int = 1000,
    job: Job | None = None,
    reference: str | None = None,
    batch: int = 50,
    device: str | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> FoundWindow:
    """Searches a window.

    Args:
        model: what `load` takes.
        sampler: the recipe of one sampler with its steps; a window between its calls is meant for this sampler.
        images: of every run, at least 100.
        job: what is generated; None: what the model's card pins.
        reference: real images, as for `bench`; None: those that ship with a bundled model.
        batch: images at a time.
        device, threads: where.
        progress: receives a line a window.

    Raises:
        UsageError: a recipe that is not one sampler, guidance that is off, too few images, no real images.
        NotApplicableError: a pipeline whose calls have no two halves.
    """
    solver = _solver(sampler)
    if images < FEWEST or batch < 1:
        raise UsageError(f"A window is scored by at least {FEWEST} images, in batches of at least 1; got {images} and {batch}.")
    opened = open_pipeline(model, job or Job(), Placement(device=device, threads=threads))
    wanted = replace(opened.job, seed=opened.job.seed + SEEDS_APART)
    wanted.check(opened.pipeline)
    scale = yardstick_for(opened.name, reference)
    if scale is None:
        raise UsageError(f"{opened.name} ships no real images to score a window by.", hint="reference=DIR, a folder of real images")
    EVERYWHERE.check_target(view(opened.pipeline))
    opened.pipeline.set_progress_bar_config(disable=True)
    trial = _Trial(opened.pipeline, solver, wanted, scale, images, batch, progress)
    edges = trial.edges()
    first = trial.score(EVERYWHERE)
    tops = [first, *(trial.score(GuidanceWindow(lo=0.0, hi=edge)) for edge in edges)]
    top = min(tops, key=lambda one: one.kid)
    lows = [trial.score(GuidanceWindow(lo=edge, hi=top.hi)) for edge in edges if top.hi is None or edge < top.hi]
    best = min((top, *lows), key=lambda one: one.kid)
    window = GuidanceWindow(lo=best.lo, hi=best.hi)
    (fresh, ours), (other, theirs) = (trial.run(one, fresh=True) for one in (window, EVERYWHERE))
    apart = kid_difference(ours, theirs, scale.reference.subset)
    settings = {"sampler": str(solver), "images": images, "job": asdict(wanted)}
    recipe = str(solver if window == EVERYWHERE else Recipe((window, solver)))
    difference = (apart.value, apart.low, apart.high)
    return FoundWindow(opened.name, opened.sha256, recipe, (*tops, *lows), (fresh, other), difference, settings)


@dataclass
class _Trial:
    """Runs of one sampler under windows."""

    pipeline: Any
    solver: Solver
    job: Job
    scale: Yardstick
    images: int
    batch: int
    progress: Callable[[str], None]

    def edges(self) -> list[float]:
        """Falling, one between each two noise levels of the run, in the middle of their logarithms."""
        with accelerate(self.pipeline, self.solver):
            generate(self.pipeline, self.job, range(1))  # flow pipelines plan with the shift of their image size
            levels = sorted(set(self.pipeline.scheduler.requests), reverse=True)
        return [float(f"{math.sqrt(s * t):.4g}") for s, t in pairwise(levels)]

    def score(self, window: GuidanceWindow) -> TriedWindow:
        """A window's scores on the seeds of the search."""
        return self.run(window)[0]

    def run(self, window: GuidanceWindow, *, fresh: bool = False) -> tuple[TriedWindow, Tensor]:
        """A window's scores and the features of its images (n x d).

        Raises:
            UsageError: guidance is off.
        """
        start = self.images if fresh else 0
        batches = [list(part) for part in torch.arange(start, start + self.images).split(self.batch)]
        with accelerate(self.pipeline, Recipe((window, self.solver))) as handle, CallCounter(view(self.pipeline).denoiser) as counter:
            made = [self.scale.net(generate(self.pipeline, self.job, [int(index) for index in part])) for part in batches]
            if "not guided" in handle.report().get("no effect", ""):
                raise UsageError("Guidance is off: there is no window to search.", hint="Job(guidance_scale=4.0)")
        features = torch.cat(made)
        labels = self.job.labels(start + self.images)[start:] if self.job.class_labels else None
        quality = self.scale.quality(features, labels)
        scores: dict[str, float | None] = {name: found.value for name, found in quality.items()}
        scores |= {"KID, low": quality["KID"].low, "KID, high": quality["KID"].high}
        # A call has a row an image and, within the window, two.
        tried = TriedWindow(window.lo, window.hi, counter.rows / self.images, scores)
        self.progress(f"{'fresh seeds, ' if fresh else ''}{window}: {tried.nfe:g} rows an image, KID {tried.kid:.4f}")
        return tried, features


def _solver(text: str) -> Solver:
    methods = Recipe.parse(text).methods
    if len(methods) != 1 or not isinstance(methods[0], Solver):
        raise UsageError(f"A window is searched for one sampler; got {text!r}.", hint="dpm(steps=10)")
    return methods[0]
