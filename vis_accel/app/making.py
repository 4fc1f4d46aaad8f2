"""Pictures under one recipe, and under two that are held against each other: what the pages and the API run, without either."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from torch import Tensor

from vis_accel.app import recipes
from vis_accel.app.catalog import Catalog, Model
from vis_accel.app.requests import CompareRequest, GenerateRequest
from vis_accel.app.watching import Progress, prepare, watched
from vis_accel.app.worker import Task
from vis_accel.eval.interval import Interval
from vis_accel.eval.paired import SSIM_WINDOW, psnr, ssim
from vis_accel.eval.speed import interleave
from vis_accel.generation import Job, generate
from vis_accel.recipe import Recipe

__all__ = ["Compared", "Made", "likeness", "start_compare", "start_generate"]

ROUNDS = 6  # of a timing: the fewest whose interval can have 95%


@dataclass(frozen=True)
class Made:
    """Pictures and what they cost.

    Attributes:
        pictures: uint8, B x 3 x H x W.
        seconds: of the run; previews are not counted.
        calls: evaluations of the network.
        nfe: rows evaluated for each picture; guidance doubles them.
        stock: the same of the model as it comes, where that was asked for.
    """

    pictures: Tensor
    seconds: float
    calls: int
    nfe: float
    stock: Made | None = None


@dataclass(frozen=True)
class Compared:
    """Two recipes on the same seeds.

    Attributes:
        first, second: what each made.
        seconds: median time of a run of each, interleaved.
        ratio: how many times faster the second is.
        unstable: why the times are not to be trusted; empty if they are.
        psnr, ssim: means over the pairs; ssim None for pictures smaller than its window.
        identical: pairs that are equal bit for bit.
    """

    first: Made
    second: Made
    seconds: tuple[float, float]
    ratio: Interval
    unstable: tuple[str, ...]
    psnr: float
    ssim: float | None
    identical: int


def start_generate(request: GenerateRequest, catalog: Catalog) -> Task:
    """Starts a request in the model's own thread; `task.result` is a `Made`, updates are `Progress`."""
    model, job, recipe = catalog.get(request.model), request.job(catalog), recipes.read(request.recipe)
    beside = request.beside and bool(recipe.methods)

    def work(task: Task) -> Made:
        made = _make(model, recipe, job, request.count, task, "denoising")
        return replace(made, stock=_make(model, Recipe.empty, job, request.count, task, "stock", made)) if beside else made

    return model.worker.start(work)


def start_compare(request: CompareRequest, catalog: Catalog) -> Task:
    """Starts a request in the model's own thread; `task.result` is a `Compared`, updates are `Progress`."""
    model, job = catalog.get(request.model), request.job(catalog)
    pair = (recipes.read(request.first), recipes.read(request.second))
    return model.worker.start(lambda task: _compare(model, pair, job, request.count, task))


def likeness(first: Tensor, second: Tensor) -> tuple[float, float | None]:
    """PSNR (dB) and SSIM of pairs of pictures (uint8, B x 3 x H x W), in the mean; SSIM is None for pictures smaller than its window."""
    a, b = first.float() / 255, second.float() / 255
    return float(psnr(a, b).mean()), float(ssim(a, b).mean()) if min(a.shape[-2:]) >= SSIM_WINDOW else None


def _make(model: Model, recipe: Recipe, job: Job, count: int, task: Task, stage: str, before: Made | None = None) -> Made:
    def report(update: Progress) -> None:
        task.report(update._replace(before=before))

    prepare(model.variants, recipe, task, model.settings.prepare_seconds)
    with model.variants.on(recipe), watched(model.view, task, count=count, stage=stage, report=report) as watch:
        start = time.perf_counter()
        pictures = generate(model.target, job, range(count))
        seconds = time.perf_counter() - start - watch.looking
    return Made(pictures, seconds, watch.calls, watch.rows / count)


def _compare(model: Model, pair: tuple[Recipe, Recipe], job: Job, count: int, task: Task) -> Compared:
    """The first call of each makes the pictures; later calls are timed, with nothing between them but the question whether to go on."""
    made: dict[str, Made] = {}
    timed = 0

    def run(stage: str, recipe: Recipe) -> None:
        nonlocal timed
        if stage not in made:
            made[stage] = _make(model, recipe, job, count, task, stage)
            return
        task.report(Progress(timed, 4 * ROUNDS, None, "timing"))
        with model.variants.on(recipe), watched(model.view, task):
            generate(model.target, job, range(count))
        timed += 1

    runs = {"first": lambda: run("first", pair[0]), "second": lambda: run("second", pair[1])}
    timings = interleave(runs, rounds=ROUNDS, warmup=0, budget_s=model.settings.timing_seconds)
    first, second = made["first"], made["second"]
    decibels, structure = likeness(first.pictures, second.pictures)
    return Compared(
        first,
        second,
        seconds=(timings.median("first"), timings.median("second")),
        ratio=timings.ratio("second", "first"),
        unstable=tuple({*timings.unstable("first"), *timings.unstable("second")}),
        psnr=decibels,
        ssim=structure,
        identical=int((first.pictures == second.pictures).flatten(1).all(dim=1).sum()),
    )
