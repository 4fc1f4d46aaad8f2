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
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel.budget import Cost, choose_n, spoken
from vis_accel.contenders import Contender, Stage
from vis_accel.errors import UsageError
from vis_accel.eval.counters import CallCounter, peak_memory
from vis_accel.eval.features import gather_features
from vis_accel.eval.noninferiority import Verdict
from vis_accel.eval.speed import Timings, interleave
from vis_accel.eval.yardstick import Yardstick, paired_quality
from vis_accel.generation import Job, generate
from vis_accel.journal import Journal, row_key
from vis_accel.machine import machine, versions
from vis_accel.recipe import Recipe
from vis_accel.record import Card, Quantity, Record
from vis_accel.rows import count, now, speed, where
from vis_accel.zoo.measured import Shipped, shipped_baselines, yardstick_for
from vis_accel.zoo.opened import Placement, open_pipeline

__all__ = ["Settings", "Watcher", "bench"]

BUDGET = 300.0  # seconds, where none is given
MOST = 50_000  # images a row, where no other bound applies
PROBE = 32  # images of the stock pipeline made in every run: the check of shipped features, and the pairs of PSNR and SSIM
SETTLING = 6.0  # seconds a row for counters, memory and files
ROUNDS = 6  # of interleaved timing: the fewest whose median has a 95% interval
TIMING_SHARE = 0.14  # of the budget, for the timing of one row
ROWS = "rows.jsonl"  # the journal, in the output folder
STRIP = 8  # images of a row kept for the picture


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run, apart from what is measured.

    Attributes:
        samples: images a row; None: as many as the budget allows.
        budget: seconds for everything; None: 300, and `samples` may take up to an hour.
        batch: images a call, in the quality runs.
        timing_batch: images a call, in the timing.
        reference: a folder of real images or a file that `vis-accel reference` wrote; None: the bundled model's own, if it has one.
        output: folder for card.json, card.md, card.png and the rows; None: nothing is written.
        resume: go on from the rows in `output`.
        placement: device, dtype, threads of a model that is given by name.
    """

    samples: int | None = None
    budget: float | None = None
    batch: int = 50
    timing_batch: int = 16
    reference: str | None = None
    output: Path | None = None
    resume: bool = False
    placement: Placement = field(default_factory=Placement)


@dataclass
class Watcher:
    """Who wants to know: each is called in the first process only."""

    say: Callable[[str], None] = lambda line: None
    row: Callable[[Record], None] = lambda record: None
    progress: Callable[[str, int, int], None] = lambda label, done, total: None


def bench(
    model: Any = "cifar10-dit",
    recipes: Sequence[Recipe | str] = ("dpm(steps=10)",),
    *,
    job: Job | None = None,
    settings: Settings | None = None,
    watcher: Watcher | None = None,
) -> Card:
    """Measures recipes on a model against the stock pipeline.

    Args:
        model: a name or folder that `load` knows, or a loaded pipeline.
        recipes: what is measured, one row each.
        job: what is generated; what it leaves open, a bundled model's card pins.
        settings: how many images, how long, where to.
        watcher: receives lines, rows and progress.

    Returns:
        The card: the stock row as baseline, diffusers' fast sampler, then the recipes in the order given.

    Raises:
        UsageError: a recipe that does not fit, a number of samples the budget does not allow, too small an n.
        RunError: a model, a reference or an output folder that is broken.
    """
    parsed = [Recipe.parse(recipe) if isinstance(recipe, str) else recipe for recipe in recipes]
    if not parsed or any(not recipe.methods for recipe in parsed):
        raise UsageError("A benchmark needs at least one recipe that is not empty.", hint="--sampler dpm, or --recipe 'dpm(steps=10)'")
    with _Bench(model, parsed, job or Job(), settings or Settings(), watcher or Watcher()) as run:
        return run.card()


def preview(model: Any, recipes: Sequence[Recipe], *, job: Job, placement: Placement) -> list[str]:
    """What a benchmark would measure, a line a row, without generating anything.

    Raises:
        UsageError: what `bench` would refuse.
    """
    opened = open_pipeline(model, job, placement)
    stage = Stage(opened.pipeline, recipes, opened.job)
    try:
        lines = [f"{opened.name}: {type(opened.pipeline).__name__}, guidance {stage.job.guidance_scale}"]
        for person in stage.everyone:
            stage.enter(person)
            calls = _planned_calls(stage, person)
            lines.append(f"{person.label}: {calls} calls")
        return lines
    finally:
        stage.close()


def _planned_calls(stage: Stage, person: Contender) -> int:
    """Calls of the denoiser an image, as the scheduler on the pipeline plans them."""
    stage.enter(person)
    stage.pipeline.scheduler.set_timesteps(person.job.steps)
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
        self.name, self.pipeline, self.model_hash, self.job = opened.name, opened.pipeline, opened.sha256, opened.job
        self.stage = Stage(self.pipeline, recipes, self.job)
        self.own = self.stage.baselines[0]
        self.yardstick: Yardstick | None = yardstick_for(self.name, settings.reference)
        self.shipped: Shipped | None = None
        if self.yardstick is not None and settings.reference is None:
            jobs = {base.label: base.job for base in self.stage.baselines}
            self.shipped = shipped_baselines(self.name, self.model_hash, self.yardstick.net, jobs)
        self.journal = Journal(settings.output / ROWS) if settings.output is not None and self.main else None
        self.features: dict[str, Tensor] = {}

    def __enter__(self) -> _Bench:
        return self

    def __exit__(self, *error: object) -> None:
        self.stage.close()

    # The course

    def card(self) -> Card:
        done = self._rows_so_far()
        self._look_at_the_baseline()
        self.n = self._choose_n(done)
        rows = {key: row for contender in self.stage.everyone if (key := self._key(contender)) in done for row in [done[key]]}
        told: set[str] = set()
        for contender in self.stage.candidates:
            if self._key(contender) not in rows or any(self._key(base) not in rows for base in self.stage.baselines):
                self._measure(contender, rows)
            for person in (*self.stage.baselines, contender):
                if person.label not in told:
                    told.add(person.label)
                    self.watcher.row(rows[self._key(person)])
            self._write(rows)
        return self._card(rows)

    def _rows_so_far(self) -> dict[str, Record]:
        if self.journal is None:
            return {}
        if not self.settings.resume:
            _set_aside(self.journal.path)
        return self.journal.read()

    def _look_at_the_baseline(self) -> None:
        """Makes the probe images, learns from them what a call costs, and checks the shipped features by them."""
        long, self.probe = self._timed(self.own.job)
        short, _ = self._timed(replace(self.own.job, steps=max(1, (self.own.job.steps or 50) // 10)))
        self.cost = Cost.fit(short, long)
        if self.shipped is not None and self.yardstick is not None:
            problem = self.shipped.problem(self.yardstick.net(self.probe))
            if problem:
                self.watcher.say(f"The shipped features of the baselines are not used: {problem}. Their images are made here.")
                self.shipped = None

    def _timed(self, job: Job) -> tuple[tuple[int, float], Tensor]:
        """Calls and seconds an image of the stock pipeline, and the probe images."""
        self.stage.enter(self.own)
        with CallCounter(self.stage.view.denoiser) as counter:
            started = time.monotonic()
            images = generate(self.pipeline, job, range(PROBE))
            if self.yardstick is not None:
                self.yardstick.net(images)
        return (counter.calls, (time.monotonic() - started) / PROBE), images

    def _choose_n(self, done: dict[str, Record]) -> int:
        """Images a row: those of the rows that are there already, or what was asked for, or what the budget allows."""
        settings, scale = self.settings, self.yardstick
        if done and settings.samples is None:
            return next(iter(done.values())).n
        made = [] if self.shipped is not None or scale is None else list(self.stage.baselines)
        most = len(self.shipped) if self.shipped is not None else MOST if scale is not None else PROBE
        if self.shipped is not None and settings.samples is not None and settings.samples > most:
            message = f"{self.name} has features of {most} images of its baselines; {settings.samples} were asked for."
            raise UsageError(message, hint=f"--samples {most}")
        n, seconds = choose_n(
            cost=self.cost, calls=[_planned_calls(self.stage, contender) for contender in (*made, *self.stage.candidates)], most=most,
            smallest=scale.smallest if scale is not None else 2, few=2 * PROBE,
            fixed=(self._timing_seconds + SETTLING) * len(self.stage.candidates), samples=settings.samples, budget=settings.budget,
            left=(settings.budget or BUDGET) - (time.monotonic() - self.began),
        )  # fmt: skip
        self.watcher.say(f"about {spoken(seconds)} to go: {n} images a row, {self.cost.call * 1e3:.2f} ms a call and image")
        return n

    @property
    def _timing_seconds(self) -> float:
        return TIMING_SHARE * (self.settings.budget or BUDGET)

    # One row

    def _measure(self, contender: Contender, rows: dict[str, Record]) -> None:
        started = now()
        for base in self.stage.baselines:
            if base.label not in self.features:
                self.features[base.label] = self._baseline_features(base)
        made = self._images(contender)
        people = (*self.stage.baselines, contender)
        timings = self._time(people) if self.main else None
        for person in people:
            if self._key(person) in rows:
                continue
            features, first = made if person is contender else self._of_baseline(person)
            record = self._record(person, started, features, first, timings)
            rows[self._key(person)] = record
            if self.journal is not None:
                self.journal.append(self._key(person), record)
                self._keep_strip(person, first)

    def _of_baseline(self, base: Contender) -> tuple[Tensor, Tensor]:
        return self.features[base.label], self.probe if base is self.own else self._some(base)

    def _baseline_features(self, base: Contender) -> Tensor:
        if self.shipped is not None:
            return self.shipped.features[self.stage.baselines.index(base)][: self.n]
        return torch.empty(0) if self.yardstick is None else self._images(base)[0]

    def _images(self, contender: Contender) -> tuple[Tensor, Tensor]:
        """Features (n x d; none without a yardstick) of the row's images, and the first images themselves; all others are dropped."""
        self.stage.enter(contender)
        count, index = self.accelerator.num_processes, self.accelerator.process_index
        mine = list(torch.arange(self.n).split(self.settings.batch))[index::count]
        features, first = [], []
        for done, batch in enumerate(mine):
            images = generate(self.pipeline, contender.job, batch.tolist())
            first.append(images[batch < PROBE])
            features.append(torch.empty(len(batch), 0) if self.yardstick is None else self.yardstick.net(images))
            self.watcher.progress(contender.label, done + 1, len(mine))
        if count == 1:
            return torch.cat(features), torch.cat(first)
        if len(mine) == 0:
            message = f"{self.n} images in batches of {self.settings.batch} are too few for {count} processes."
            raise UsageError(message, hint="a smaller --batch")
        return gather_features(torch.cat(features), torch.cat(mine), self.accelerator), self._some(contender)

    def _some(self, contender: Contender) -> Tensor:
        self.stage.enter(contender)
        return generate(self.pipeline, contender.job, range(min(PROBE, self.n)))

    def _time(self, people: Sequence[Contender]) -> Timings:
        self.watcher.say(f"{people[-1].label}: timing, interleaved with the baselines")
        by_label, indices = {person.label: person for person in people}, range(self.settings.timing_batch)
        runs = {label: lambda person=person: generate(self.pipeline, person.job, indices) for label, person in by_label.items()}
        return interleave(
            runs, rounds=ROUNDS, warmup=0, budget_s=self._timing_seconds, prepare=lambda label: self.stage.enter(by_label[label])
        )

    def _record(self, person: Contender, started: str, features: Tensor, first: Tensor, timings: Timings | None) -> Record:
        quality, verdict = self._quality(person, features, first)
        baselines = [base.label for base in self.stage.baselines]
        dtype = str(self.pipeline.dtype).removeprefix("torch.")
        memory = peak_memory(lambda: self._batch_of(person), self.pipeline.device) if self.main else None
        return Record(
            recipe=person.label, recipe_form=person.recipe.to_dict(), exactness=person.recipe.exactness, model=self.name,
            model_hash=self.model_hash, data="the stock pipeline's images" if self.yardstick is None else self.yardstick.reference.name,
            seeds=f"{self.job.seed}..{self.job.seed + self.n - 1}", n=self.n,
            settings={"guidance_scale": self.job.guidance_scale, "batch": self.settings.timing_batch, "dtype": dtype},
            quality=quality, verdict=None if verdict is None else f"{verdict.outcome}: {verdict.reason}",
            speed=None if timings is None else speed(person.label, timings, baselines, self.settings.timing_batch),
            counters=count(self.stage, person), peak_memory_bytes=memory,
            first_call_seconds=None if timings is None else timings.first_call[person.label],
            unstable=() if timings is None else tuple(timings.unstable(person.label)), started=started, finished=now(), **where(),
        )  # fmt: skip

    def _quality(self, person: Contender, features: Tensor, first: Tensor) -> tuple[dict[str, Quantity], Verdict | None]:
        quality: dict[str, Quantity] = {}
        verdict = None
        if self.yardstick is not None:
            quality |= self.yardstick.quality(features, self.job.labels(self.n) if self.job.class_labels else None)
            if person is not self.own:
                difference, verdict = self.yardstick.compare(features, self.features[self.own.label])
                quality |= difference
        if person is not self.own:
            pairs = min(len(first), len(self.probe))
            quality |= paired_quality(self.probe[:pairs], first[:pairs])
        return quality, verdict

    def _batch_of(self, person: Contender) -> Tensor:
        self.stage.enter(person)
        return generate(self.pipeline, person.job, range(self.settings.timing_batch))

    # Files

    def _key(self, contender: Contender) -> str:
        """The row's key in the journal: the hash of everything that determines it."""
        facts = {"model": self.model_hash, "recipe": contender.label, "job": asdict(contender.job), "n": self.n, "probe": PROBE}
        facts |= {"reference": None if self.yardstick is None else [self.yardstick.reference.name, self.yardstick.reference.net_sha256]}
        facts |= {"batch": self.settings.timing_batch, "dtype": str(self.pipeline.dtype), "threads": torch.get_num_threads()}
        return row_key(facts | {"versions": versions(), "processor": machine()["processor"]})

    def _keep_strip(self, person: Contender, images: Tensor) -> None:
        from vis_accel.plots import save_strip

        if self.settings.output is not None:
            save_strip(images[:STRIP], self.settings.output, person.label)

    def _card(self, rows: dict[str, Record]) -> Card:
        found = [rows[key] for person in self.stage.everyone if (key := self._key(person)) in rows]
        reference: dict[str, Any] = {}
        if self.yardstick is not None:
            real = self.yardstick.reference
            reference = {"name": real.name, "images": real.statistics.n, "net_sha256": real.net_sha256}
            reference["floor"] = self.yardstick.floor(self.n)
        title = f"{self.name}: {', '.join(contender.label for contender in self.stage.candidates)}"
        return Card(title=title, baseline=found[0], records=tuple(found[1:]), reference=reference)

    def _write(self, rows: dict[str, Record]) -> None:
        from vis_accel.plots import draw_card

        if self.settings.output is not None and self.main:
            card = self._card(rows)
            card.save(self.settings.output)
            draw_card(card, self.settings.output)


def _set_aside(path: Path) -> None:
    """Keeps the rows of an earlier run under another name, so that a new one starts empty and nothing is lost."""
    if path.exists():
        stamp = now().replace(":", "").replace("+0000", "")
        path.rename(path.with_name(f"{path.stem}.{stamp}{path.suffix}"))
