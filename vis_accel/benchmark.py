"""`bench`: what a recipe gains in speed and what it costs in quality, in one row, against the stock pipeline on the same seeds.

    card = bench("cifar10-dit", ["dpm(steps=10)"], samples=5000)

Course   1. The stock pipeline makes a few images. On a bundled model they check the shipped features of its baselines; everywhere they are
            what PSNR and SSIM are measured to. 2. Two short runs say what a call costs here, hence how many images the budget allows.
         3. Each row: its images, streamed through the feature network and dropped; its counters; its time, interleaved with both
            baselines.
Safety   A finished row is on the disk before the next one starts; the card is rewritten after every row. With resume=True the same
         request finds its rows again.
Several processes (accelerate launch) share the batches of a row; the first one times, writes and reports.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vis_accel import measuring
from vis_accel.benchmark_settings import BUDGET, ROWS, Settings, Watcher, set_aside, try_to_write
from vis_accel.budget import Cost, choose_n, spoken
from vis_accel.classifier_bench import bench_classifier, preview_classifier
from vis_accel.contenders import Contender, Stage
from vis_accel.errors import UsageError, VisAccelError
from vis_accel.eval.counters import CallCounter
from vis_accel.eval.yardstick import Yardstick
from vis_accel.generation import Job, generate
from vis_accel.journal import Journal
from vis_accel.measuring import Measurer
from vis_accel.recipe import Recipe
from vis_accel.record import Card, Record
from vis_accel.rows import now
from vis_accel.zoo.measured import Shipped, shipped_baselines, yardstick_for
from vis_accel.zoo.opened import Placement, is_classifier, open_pipeline
from vis_accel.zoo.quantized import is_quantized, opened_as

__all__ = ["Settings", "Watcher", "bench"]

DEFAULT_RECIPES = {"pipeline": "dpm(steps=10)", "classifier": "tome(r=8)"}  # what is measured, where nothing is asked for
BATCH = 50  # images a call, where no other number is given
MOST = 50_000  # images a row, where no other bound applies
SETTLING = 6.0  # seconds a row for counters, memory and files
STRIP = 8  # images of a row kept for the picture


def bench(
    model: Any = "cifar10-dit",
    recipes: Sequence[Recipe | str] | None = None,
    *,
    job: Job | None = None,
    settings: Settings | None = None,
    watcher: Watcher | None = None,
) -> Card:
    """Measures recipes on a model against the model without them.

    Args:
        model: a name or folder that `load` knows, a loaded pipeline, or a loaded image classifier.
        recipes: what is measured, one row each; without it `DEFAULT_RECIPES`.
        job: for pipelines, what is generated; what it leaves open, a bundled model's card pins.
        settings: how many images, how long, where to.
        watcher: receives lines, rows and progress.

    Returns:
        The card: the stock row as baseline, the second baseline (diffusers' fast sampler; for a classifier the compiled network, if a
        recipe compiles), then the recipes in the order given.

    Raises:
        UsageError: a recipe that does not fit, a number of samples the budget does not allow, too small an n.
        RunError: a model, a reference or an output folder that is broken.
    """
    model, recipes = _unfolded(model, recipes)
    parsed = _parsed(model, recipes)
    if not parsed or any(not recipe.methods for recipe in parsed):
        raise UsageError("A benchmark needs at least one recipe that is not empty.", hint="--sampler dpm, or --recipe 'dpm(steps=10)'")
    settings = settings or Settings()
    if is_classifier(model):
        return bench_classifier(model, parsed, job=job or Job(), settings=settings, watcher=watcher or Watcher())
    _refuse_images(settings)
    with _Bench(model, parsed, job or Job(), settings, watcher or Watcher()) as run:
        return run.card()


def preview(
    model: Any, recipes: Sequence[Recipe | str] | None, *, job: Job, placement: Placement, settings: Settings | None = None
) -> list[str]:
    """What a benchmark would measure, a line a row, without running any network.

    Args:
        model, recipes, job: as for `bench`.
        placement: device, dtype, threads.
        settings: what else was asked for; its placement does not count.

    Raises:
        UsageError: what `bench` would refuse.
    """
    model, recipes = _unfolded(model, recipes)
    settings, parsed = replace(settings or Settings(), placement=placement), _parsed(model, recipes)
    if is_classifier(model):
        return preview_classifier(model, parsed, job=job, settings=settings)
    _refuse_images(settings)
    opened = open_pipeline(model, job, placement)
    stage = Stage(opened.pipeline, parsed, opened.job)
    try:
        lines = [f"{opened.name}: {type(opened.pipeline).__name__}, guidance {stage.job.guidance_scale}"]
        for person in stage.everyone:
            stage.enter(person)
            calls = _planned_calls(stage, person)
            lines.append(f"{person.label}: {calls} calls")
        return lines
    finally:
        stage.close()


def _unfolded(model: Any, recipes: Sequence[Recipe | str] | None) -> tuple[Any, Sequence[Recipe | str] | None]:
    """A quantized folder as its float model, the baseline, and its own recipe before those that were asked for."""
    if not is_quantized(model):
        return model, recipes
    name, own = opened_as(model)
    return name, (own, *(recipes or ()))


def _parsed(model: Any, recipes: Sequence[Recipe | str] | None) -> list[Recipe]:
    if recipes is None:
        recipes = [DEFAULT_RECIPES["classifier" if is_classifier(model) else "pipeline"]]
    return [Recipe.parse(recipe) if isinstance(recipe, str) else recipe for recipe in recipes]


def _refuse_images(settings: Settings) -> None:
    """Raises UsageError for what only classifiers take."""
    if settings.data is not None or settings.skip_broken or settings.calibration is not None:
        raise UsageError(
            "--data, --calibration and --skip-broken are for image classifiers.",
            hint="real images to hold a pipeline against: --reference DIR",
        )
    if settings.more_timing_batches:
        raise UsageError("A pipeline is timed at one batch size.", hint="--timing-batch once")


def _planned_calls(stage: Stage, person: Contender) -> int:
    """Calls of the denoiser an image, as the scheduler on the pipeline plans them."""
    stage.enter(person)
    try:
        stage.pipeline.scheduler.set_timesteps(person.job.steps)
    except ValueError as error:
        if isinstance(error, VisAccelError):
            raise
        return person.job.steps or 1  # a flow scheduler wants the shift its pipeline computes; it makes a call a step
    return len(stage.pipeline.scheduler.timesteps)


class _Bench:
    """One benchmark in progress."""

    def __init__(self, model: Any, recipes: list[Recipe], job: Job, settings: Settings, watcher: Watcher) -> None:
        from accelerate import Accelerator

        self.began = time.monotonic()
        self.settings = settings
        self.accelerator = Accelerator()
        self.main = self.accelerator.is_main_process
        self.watcher = watcher if self.main else Watcher()
        opened = open_pipeline(model, job, settings.placement)
        self.stage = Stage(opened.pipeline, recipes, opened.job)
        self.own = self.stage.baselines[0]
        self.yardstick: Yardstick | None = yardstick_for(opened.name, settings.reference)
        self.shipped: Shipped | None = None
        if self.yardstick is not None and settings.reference is None:
            jobs = {base.label: base.job for base in self.stage.baselines}
            self.shipped = shipped_baselines(opened.name, opened.sha256, self.yardstick.net, jobs)
        self.journal = None if settings.output is None else Journal(settings.output / ROWS)
        self.measurer = Measurer(
            opened,
            self.stage,
            self.yardstick,
            self.accelerator,
            batch=settings.batch or BATCH,
            timing_batch=settings.timing_batch,
            timing_seconds=settings.timing_seconds(len(recipes)),
            progress=self.watcher.progress,
        )

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.stage.close()

    def card(self) -> Card:
        """The whole course; see the module's text."""
        done = self._rows_so_far()
        self._look_at_the_baseline()
        self.measurer.n = self._agreed(self._choose_n(done))
        keys = {person.label: self.measurer.key(person) for person in self.stage.everyone}
        rows = {label: done[key] for label, key in keys.items() if key in done}
        told: set[str] = set()
        for contender in self.stage.candidates:
            people = (*self.stage.baselines, contender)
            if any(person.label not in rows for person in people):
                self._measure(contender, rows)
            for person in people:
                if person.label not in told:
                    told.add(person.label)
                    self.watcher.row(rows[person.label])
            self._write(rows)
        return self._card(rows)

    def _rows_so_far(self) -> dict[str, Record]:
        """The rows of the run before, the same in every process."""
        if self.journal is None:
            return {}
        if self.main and not self.settings.resume:
            set_aside(self.journal.path)
        if self.main:
            try_to_write(self.journal.path.parent)
        self.accelerator.wait_for_everyone()
        return self.journal.read()

    def _agreed(self, n: int) -> int:
        """The first process's n, in every process: each has measured its own costs."""
        from accelerate.utils import broadcast

        return n if self.accelerator.num_processes == 1 else int(broadcast(torch.tensor([n], device=self.accelerator.device)).item())

    def _look_at_the_baseline(self) -> None:
        """Makes the probe images, learns from them what a call costs, and checks the shipped features by them."""
        long, self.measurer.probe = self._timed(self.own.job)
        short, _ = self._timed(replace(self.own.job, steps=max(1, (self.own.job.steps or 50) // 10)))
        self.cost = Cost.fit(short, long)
        if self.shipped is not None and self.yardstick is not None:
            problem = self.shipped.problem(self.yardstick.net(self.measurer.probe))
            if problem:
                self.watcher.say(f"The shipped features of the baselines are not used: {problem}. Their images are made here.")
                self.shipped = None

    def _timed(self, job: Job) -> tuple[tuple[int, float], Tensor]:
        """Calls and seconds an image of the stock pipeline, and the probe images."""
        self.stage.enter(self.own)
        with CallCounter(self.stage.view.denoiser) as counter:
            started = time.monotonic()
            images = generate(self.stage.pipeline, job, range(measuring.PROBE))
            if self.yardstick is not None:
                self.yardstick.net(images)
        return (counter.calls, (time.monotonic() - started) / measuring.PROBE), images

    def _choose_n(self, done: dict[str, Record]) -> int:
        """Images a row: those of the rows that are there already, or what was asked for, or what the budget allows."""
        settings, scale = self.settings, self.yardstick
        if settings.samples is None and (kept := self._n_of(done)) is not None:
            return kept
        made = [] if self.shipped is not None or scale is None else list(self.stage.baselines)
        most = len(self.shipped) if self.shipped is not None else MOST if scale is not None else measuring.PROBE
        if self.shipped is not None and settings.samples is not None and settings.samples > most:
            message = f"The bundled baselines have features of {most} images; {settings.samples} were asked for."
            raise UsageError(message, hint=f"--samples {most}")
        n, seconds = choose_n(
            cost=self.cost,
            calls=[_planned_calls(self.stage, contender) for contender in (*made, *self.stage.candidates)],
            most=most,
            smallest=scale.smallest if scale is not None else 2,
            few=2 * measuring.PROBE,
            fixed=(self.measurer.timing_seconds + SETTLING) * len(self.stage.candidates),
            samples=settings.samples,
            budget=settings.budget,
            left=(settings.budget or BUDGET) - (time.monotonic() - self.began),
        )
        self.watcher.say(f"about {spoken(seconds)} to go: {n} images a row, {self.cost.call * 1e3:.2f} ms a call and image")
        return n

    def _n_of(self, done: dict[str, Record]) -> int | None:
        """The n of a row of this very request among those that are there; None if all are of others."""
        for n in dict.fromkeys(row.n for row in done.values()):
            self.measurer.n = n
            if any(self.measurer.key(person) in done for person in self.stage.everyone):
                return n
        return None

    def _measure(self, contender: Contender, rows: dict[str, Record]) -> None:
        """Measures a row, and those of the baselines if they are not there yet."""
        started, features = now(), self.measurer.features
        for base in self.stage.baselines:
            if base.label not in features:
                features[base.label] = self._baseline_features(base)
        made = self.measurer.images(contender)
        people = (*self.stage.baselines, contender)
        self.watcher.say(f"{contender.label}: timing, interleaved with the baselines")
        timings = self.measurer.time(people) if self.main else None
        parts = self.measurer.together(contender) if self.main else ()
        for person in people:
            if person.label not in rows:
                feature, first = made if person is contender else (features[person.label], self._first_of(person))
                remarks = parts if person is contender else ()
                rows[person.label] = self.measurer.record(person, started, feature, first, timings, remarks)
                self._keep(person, rows[person.label], first)

    def _first_of(self, base: Contender) -> Tensor:
        return self.measurer.probe if base is self.own else self.measurer.some(base)

    def _baseline_features(self, base: Contender) -> Tensor:
        if self.shipped is not None:
            return self.shipped.features[self.stage.baselines.index(base)][: self.measurer.n]
        return torch.empty(0) if self.yardstick is None else self.measurer.images(base)[0]

    def _keep(self, person: Contender, record: Record, first: Tensor) -> None:
        """Puts a finished row on the disk."""
        from vis_accel.plots import save_strip

        if self.journal is not None and self.settings.output is not None and self.main:
            self.journal.append(self.measurer.key(person), record)
            save_strip(first[:STRIP], self.settings.output, person.label)

    def _card(self, rows: dict[str, Record]) -> Card:
        found = [rows[person.label] for person in self.stage.everyone if person.label in rows]
        reference: dict[str, Any] = {}
        if self.yardstick is not None:
            real = self.yardstick.reference
            reference = {"name": real.name, "images": real.statistics.n, "net_sha256": real.net_sha256}
            reference["floor"] = self.yardstick.floor(self.measurer.n)
        title = f"{self.measurer.opened.name}: {', '.join(contender.label for contender in self.stage.candidates)}"
        return Card(title=title, baseline=found[0], records=tuple(found[1:]), reference=reference)

    def _write(self, rows: dict[str, Record]) -> None:
        from vis_accel.plots import draw_card

        if self.settings.output is not None and self.main:
            card = self._card(rows)
            card.save(self.settings.output)
            draw_card(card, self.settings.output)
