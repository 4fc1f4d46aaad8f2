"""The benchmark of an image classifier: what a recipe gains in speed and what it costs in accuracy, in one row.

Course   1. The stock network makes a few calls, which say what an image costs here, hence how many images the budget allows; all of
            them are read once, so that a broken one is found now. 2. Each row: its answers on every image; its work, counted on real
            images; its time at each batch size, interleaved with the baselines; its memory.
Quality  top-1 with Wilson's interval, the paired difference to the stock network with Tango's, and how often both agree. A network with
         random weights, or without images, gets rows of speed alone.
Safety   A finished row is on the disk before the next one starts; the card is rewritten after every row. With resume=True the same
         request finds its rows again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel.benchmark_settings import BUDGET, ROWS, Settings, Watcher, set_aside, try_to_write
from vis_accel.budget import Cost, choose_n, spoken
from vis_accel.classifier_inputs import Inputs
from vis_accel.classifier_measuring import ClassifierMeasurer
from vis_accel.classifier_stage import ClassifierStage, Entrant
from vis_accel.errors import UsageError
from vis_accel.generation import Job
from vis_accel.journal import Journal
from vis_accel.recipe import Recipe
from vis_accel.record import Card, Record
from vis_accel.rows import now
from vis_accel.zoo.labelled import ImageSet, Preparation, Prepared, bundled_images, folder_images
from vis_accel.zoo.opened import OpenedClassifier, open_classifier

__all__ = ["bench_classifier", "calibration_inputs", "preview_classifier"]

FEWEST = 100  # images a row that a budget may shrink the data to
SETTLED_CALLS = 6  # a row: counters, memory, the calls before the timing
CALIBRATED = 256  # images of --calibration that are looked at
COMPILING = 45.0  # seconds a compilation is expected to take
SMALLEST, LARGEST = 1, 4096  # of a batch


def bench_classifier(model: Any, recipes: Sequence[Recipe], *, job: Job, settings: Settings, watcher: Watcher) -> Card:
    """Measures recipes on a classifier against the same network without them; `benchmark.bench` says what the arguments are.

    Raises:
        UsageError: what does not fit a classifier, or a number of images there is not.
        DataError: images that are missing or broken.
        NoEffectError: a recipe that changed nothing.
    """
    _refuse_others(job, settings)
    with _ClassifierBench(_Ready.of(model, recipes, settings), settings, watcher) as run:
        return run.card()


def preview_classifier(model: Any, recipes: Sequence[Recipe], *, job: Job, settings: Settings) -> list[str]:
    """What a benchmark would measure, a row after the other, with what its methods say they will do; runs nothing.

    Raises:
        UsageError, DataError: what `bench_classifier` would refuse before it begins.
    """
    _refuse_others(job, settings)
    ready = _Ready.of(model, recipes, settings)
    try:
        height, width = ready.preparation.size
        batches = ", ".join(map(str, (settings.timing_batch, *settings.more_timing_batches)))
        lines = [f"{ready.opened.name}: {type(ready.opened.network).__name__}, images of {height} x {width}, timed in batches of {batches}"]
        lines.append(f"data: {ready.data_name}" + (f", {len(ready.images):,} images" if ready.images is not None else ""))
        for entrant in ready.stage.everyone:
            lines += [entrant.label, *(f"    {line}" for line in entrant.lines)]
        return lines
    finally:
        ready.stage.close()


@dataclass(frozen=True)
class _Ready:
    """A classifier, who takes part, and the images there are: everything that can be refused before anything runs."""

    opened: OpenedClassifier
    stage: ClassifierStage
    preparation: Preparation
    images: ImageSet | None
    data_name: str

    @classmethod
    def of(cls, model: Any, recipes: Sequence[Recipe], settings: Settings) -> _Ready:
        opened = open_classifier(model, settings.placement)
        images = _images(opened, settings)
        if images is None and settings.samples is not None:
            message = f"There are no images of which {settings.samples} could be taken."
            raise UsageError(message, hint="--data DIR; or leave out --samples for rows of speed alone")
        name = "no images" if images is None else images.name
        if not opened.trained:
            name = "none: random weights" if images is None else f"none: random weights, timed on {images.name}"
        preparation = Preparation.of(opened.network, settings.placement.size)
        calibration = calibration_inputs(opened, preparation, settings.calibration, skip_broken=settings.skip_broken)
        return cls(opened, ClassifierStage(opened.network, recipes, calibration=calibration), preparation, images, name)


def calibration_inputs(opened: OpenedClassifier, preparation: Preparation, calibration: Path | None, *, skip_broken: bool) -> Tensor | None:
    """Inputs to calibrate on: of the folder that was named, or random ones for random weights; None: what ships with the model."""
    like = next(opened.network.parameters())
    if calibration is not None:
        images = folder_images(calibration, _outputs(opened), opened.classes)
        few = Prepared(images.first(min(CALIBRATED, len(images))), preparation, skip_broken=skip_broken)
        return preparation.normalised(few.pixels(0, len(few)), like)
    if opened.trained:
        return None
    return torch.randn(16, 3, *preparation.size, generator=torch.Generator().manual_seed(1)).to(like.device, like.dtype)


class _ClassifierBench:
    """One benchmark in progress."""

    def __init__(self, ready: _Ready, settings: Settings, watcher: Watcher) -> None:
        self.began = time.monotonic()
        self.ready, self.settings, self.watcher = ready, settings, watcher
        self.stage = ready.stage
        self.journal = None if settings.output is None else Journal(settings.output / ROWS)
        like = next(ready.opened.network.parameters())
        self.measurer = ClassifierMeasurer(
            opened=ready.opened,
            stage=ready.stage,
            inputs=Inputs(ready.preparation, like),
            data_name=ready.data_name,
            data_sha256="" if ready.images is None else ready.images.sha256,
            batch=settings.batch or settings.timing_batch,
            timing_batches=(settings.timing_batch, *settings.more_timing_batches),
            timing_seconds=settings.timing_seconds(len(self.stage.candidates)),
            progress=watcher.progress,
        )

    def __enter__(self) -> _ClassifierBench:
        return self

    def __exit__(self, *error: object) -> None:
        self.stage.close()

    def card(self) -> Card:
        """The whole course; see the module's text."""
        done = self._rows_so_far()
        self._choose_images(done)
        keys = {entrant.label: self.measurer.key(entrant) for entrant in self.stage.everyone}
        rows = {label: done[key] for label, key in keys.items() if key in done}
        told: set[str] = set()
        for goal in self.stage.candidates or self.stage.baselines[-1:]:
            people = tuple(dict.fromkeys((*self.stage.baselines, goal)))
            if any(entrant.label not in rows for entrant in people):
                self._measure(goal, people, rows)
            for entrant in people:
                if entrant.label not in told:
                    told.add(entrant.label)
                    self.watcher.row(rows[entrant.label])
            self._write(rows)
        return self._card(rows)

    def _rows_so_far(self) -> dict[str, Record]:
        if self.journal is None:
            return {}
        if not self.settings.resume:
            set_aside(self.journal.path)
        try_to_write(self.journal.path.parent)
        return self.journal.read()

    def _choose_images(self, done: dict[str, Record]) -> None:
        """Decides how many images a row gets, and reads them."""
        seconds = self.measurer.first_look() / self.settings.timing_batch
        if self.ready.images is None:
            why = "random weights" if not self.ready.opened.trained else "no images: --data DIR would give accuracy"
            self.watcher.say(f"speed alone ({why}); the inputs are random")
            return
        affordable = self._affordable(seconds)
        self.measurer.asked = n = self.settings.samples or self._n_of(done) or affordable
        prepared = Prepared(self.ready.images.first(n), self.ready.preparation, skip_broken=self.settings.skip_broken)
        if prepared.broken:
            self.watcher.say(f"{len(prepared.broken)} of {n} images do not open and are left out; the first: {prepared.broken[0]}")
        old = self.measurer.inputs
        self.measurer.inputs = Inputs(old.preparation, old.like, prepared)
        if self.ready.opened.trained:
            self.measurer.data_name = prepared.name

    def _affordable(self, seconds: float) -> int:
        """How many images a row, at `seconds` an image of the stock network; says how long it will take.

        Raises:
            UsageError: more were asked for than there are, or than the time allows.
        """
        settings, there, everyone = self.settings, len(self.ready.images or ()), self.stage.everyone
        if self.ready.images is not None and settings.samples is not None:
            self.ready.images.first(settings.samples)  # which refuses what is not there
        shapes = len({self.measurer.batch, *self.measurer.timing_batches})
        n, took = choose_n(
            cost=Cost(call=seconds, once=0.0),
            calls=[1] * len(everyone),
            most=there,
            smallest=min(FEWEST, there),
            few=min(FEWEST, there),
            fixed=self.measurer.timing_seconds * max(1, len(self.stage.candidates))
            + SETTLED_CALLS * len(everyone) * seconds * settings.timing_batch
            + COMPILING * shapes * sum(entrant.compiled for entrant in everyone),
            samples=settings.samples,
            budget=settings.budget,
            left=(settings.budget or BUDGET) - (time.monotonic() - self.began),
        )
        self.watcher.say(f"about {spoken(took)} to go: {n} images a row, {seconds * 1e3:.2f} ms an image")
        return n

    def _n_of(self, done: dict[str, Record]) -> int | None:
        """The number of images of a row of this very request among those that are there; None if all are of others."""
        for asked in dict.fromkeys(row.settings.get("samples") for row in done.values()):
            if isinstance(asked, int):
                self.measurer.asked = asked
                if any(self.measurer.key(entrant) in done for entrant in self.stage.everyone):
                    return asked
        return None

    def _measure(self, goal: Entrant, people: Sequence[Entrant], rows: dict[str, Record]) -> None:
        """Measures a row, and those of the baselines if they are not there yet."""
        started, measurer = now(), self.measurer
        for entrant in people:
            if entrant.label not in measurer.answers:
                self.watcher.say(f"{entrant.label}: {'compiling, then ' if entrant.compiled else ''}{measurer.inputs.n or 'random'} images")
                measurer.ask(entrant)
        self.watcher.say(f"{goal.label}: timing, interleaved with the baselines")
        at_most = None if self.settings.budget is None else measurer.timing_seconds
        timings = [measurer.time(people, batch, at_most) for batch in measurer.timing_batches]
        parts = measurer.parts(goal, at_most)
        for entrant in people:
            if entrant.label not in rows:
                rows[entrant.label] = measurer.record(entrant, started, timings, parts if entrant is goal else ())
                if self.journal is not None:
                    self.journal.append(measurer.key(entrant), rows[entrant.label])

    def _card(self, rows: dict[str, Record]) -> Card:
        found = [rows[entrant.label] for entrant in self.stage.everyone if entrant.label in rows]
        labels = [entrant.label for entrant in self.stage.candidates or self.stage.baselines[1:]]
        return Card(title=f"{self.ready.opened.name}: {', '.join(labels)}", baseline=found[0], records=tuple(found[1:]))

    def _write(self, rows: dict[str, Record]) -> None:
        from vis_accel.plots import draw_card

        if self.settings.output is not None:
            card = self._card(rows)
            card.save(self.settings.output)
            draw_card(card, self.settings.output)


def _images(opened: OpenedClassifier, settings: Settings) -> ImageSet | None:
    """The images asked for, or those that ship with the model."""
    if settings.data is None:
        return bundled_images(opened.name) if opened.trained else None
    return folder_images(settings.data, _outputs(opened), opened.classes)


def _outputs(opened: OpenedClassifier) -> int:
    classes = int(getattr(opened.network, "num_classes", 0) or 0)
    if classes < 1:
        raise UsageError(f"{opened.name} has no classes to hold images against.", hint="leave out --data for rows of speed alone")
    return classes


def _refuse_others(job: Job, settings: Settings) -> None:
    """Raises UsageError for what only pipelines take, and for numbers that make no sense."""
    for field in fields(Job):
        if field.name != "seed" and getattr(job, field.name) not in (None, ()):
            raise UsageError(f"An image classifier takes no {field.name}.", hint=f"leave out --{field.name.replace('_', '-')}")
    if settings.reference is not None:
        raise UsageError("--reference is for pipelines; a classifier is held against images with labels.", hint="--data DIR")
    if settings.skip_broken and settings.data is None and settings.calibration is None:
        raise UsageError("--skip-broken is for the images of --data.", hint="--data DIR, or leave it out")
    if settings.calibration is not None and settings.data is not None and settings.calibration.resolve() == settings.data.resolve():
        message = "--calibration and --data are the same folder: scales fitted to the images they are judged on say nothing."
        raise UsageError(message, hint="other images to calibrate on")
    batches = (settings.timing_batch, *settings.more_timing_batches)
    if len(set(batches)) < len(batches) or not all(SMALLEST <= batch <= LARGEST for batch in batches):
        message = f"--timing-batch is a number of images a call, {SMALLEST} to {LARGEST}, each once; got {', '.join(map(str, batches))}."
        raise UsageError(message)
    if int(os.environ.get("WORLD_SIZE") or 1) > 1:
        raise UsageError("A classifier is measured in one process.", hint="without accelerate launch")
