"""One row, measured: its images streamed through the feature network and dropped, its counters, its time, its memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vis_accel.contenders import Contender, Stage
from vis_accel.errors import UsageError
from vis_accel.eval.counters import peak_memory
from vis_accel.eval.features import gather_features
from vis_accel.eval.speed import Timings, interleave
from vis_accel.eval.yardstick import Yardstick, paired_quality
from vis_accel.generation import generate
from vis_accel.journal import row_key
from vis_accel.machine import machine, versions
from vis_accel.parts import break_even, product, standing_in
from vis_accel.record import Quantity, Record
from vis_accel.rows import count, notes, now, refuse_idle, speed, where
from vis_accel.zoo.opened import Opened

__all__ = ["Measurer"]

PROBE = 32  # images of the stock pipeline made in every run: the check of shipped features, and the pairs of PSNR and SSIM
ROUNDS = 6  # of interleaved timing: the fewest whose median has a 95% interval


@dataclass
class Measurer:
    """Measures the contenders of one stage.

    Attributes:
        opened: the model.
        stage: who takes part.
        yardstick: what images are measured with; None: only against the stock pipeline's.
        accelerator: several processes share the batches of a row.
        batch: images a call, in the quality runs.
        timing_batch: images a call, in the timing.
        timing_seconds: for the timing of one row.
        progress: receives a label, batches done, batches in all.
        n: images a row.
        probe: the stock pipeline's first images.
        features: of the baselines' images, by label.
    """

    opened: Opened
    stage: Stage
    yardstick: Yardstick | None
    accelerator: Any
    batch: int
    timing_batch: int
    timing_seconds: float
    progress: Callable[[str, int, int], None]
    n: int = 0
    probe: Tensor = field(default_factory=lambda: torch.empty(0))
    features: dict[str, Tensor] = field(default_factory=dict)

    def key(self, contender: Contender) -> str:
        """The row's key in the journal: the hash of everything that determines it."""
        facts = {"model": self.opened.sha256, "recipe": contender.label, "job": asdict(contender.job), "n": self.n, "probe": PROBE}
        facts |= {"reference": None if self.yardstick is None else self.yardstick.sha256}
        facts |= {"timing_batch": self.timing_batch, "dtype": str(self.opened.pipeline.dtype), "threads": torch.get_num_threads()}
        facts |= {"device": str(self.opened.pipeline.device)}
        return row_key(facts | {"versions": versions(), "processor": machine()["processor"]})

    def images(self, contender: Contender) -> tuple[Tensor, Tensor]:
        """Features (n x d; n x 0 without a yardstick) of the row's images, and the first images themselves; all others are dropped."""
        self.stage.enter(contender)
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        batches = list(torch.arange(self.n).split(self.batch))
        if len(batches) < processes:
            message = f"{self.n} images in batches of {self.batch} are too few for {processes} processes."
            raise UsageError(message, hint="a smaller --batch")
        mine = batches[index::processes]
        features, first = [], []
        for done, batch in enumerate(mine):
            # a compiled network has a graph for each batch size: the last batch is filled up, and what fills it dropped
            size = self.batch if contender.recipe.compiles else len(batch)
            images = generate(self.opened.pipeline, contender.job, range(int(batch[0]), int(batch[0]) + size))[: len(batch)]
            refuse_idle(contender)  # now, not after thousands of images
            first.append(images[batch < PROBE])
            features.append(torch.empty(len(batch), 0) if self.yardstick is None else self.yardstick.net(images))
            self.progress(contender.label, done + 1, len(mine))
        if processes == 1:
            return torch.cat(features), torch.cat(first)
        return gather_features(torch.cat(features), torch.cat(mine), self.accelerator), self.some(contender)

    def some(self, contender: Contender) -> Tensor:
        """The first images of a row."""
        self.stage.enter(contender)
        return generate(self.opened.pipeline, contender.job, range(min(PROBE, self.n)))

    def time(self, people: Sequence[Contender]) -> Timings:
        """Times everybody in `people`, interleaved."""
        by_label = {person.label: person for person in people if not person.recipe.simulated}
        runs = {label: lambda person=person: self._timed_batch(person) for label, person in by_label.items()}
        return interleave(
            runs, rounds=ROUNDS, warmup=0, budget_s=self.timing_seconds, prepare=lambda label: self.stage.enter(by_label[label])
        )

    def together(self, contender: Contender) -> tuple[str, ...]:
        """What the parts of a combination gain alone, their product, and what they gain together: a line, or none."""
        own, there = self.stage.baselines[0], (*self.stage.baselines, *self.stage.candidates)
        with standing_in(contender.recipe, there, self.stage.contender, self.stage.drop) as (parts, missing):
            if not parts:
                return ()
            timings = self.time(tuple(dict.fromkeys((own, *parts, contender))))
            return (product(timings, own.label, [part.label for part in parts], contender.label, missing),)

    def record(
        self, person: Contender, started: str, features: Tensor, first: Tensor, timings: Timings | None, remarks: Sequence[str] = ()
    ) -> Record:
        """The finished row; without timings in all processes but the first."""
        quality, verdict = self._quality(person, features, first)
        pipeline, job = self.opened.pipeline, self.opened.job
        baselines = [base.label for base in self.stage.baselines]
        settings = {"guidance_scale": job.guidance_scale, "batch": self.timing_batch, "dtype": str(pipeline.dtype).removeprefix("torch.")}
        measured: dict[str, Any] = {}
        if timings is not None and not person.recipe.simulated:
            measured["speed"] = speed(person.label, timings, baselines, self.timing_batch)
            measured["first_call_seconds"] = timings.first_call[person.label]
            measured["unstable"] = tuple(timings.unstable(person.label))
            won_back = break_even(timings, baselines[0], person.label, self.timing_batch)
            remarks = (*remarks, *([won_back] if won_back else []))
            self.stage.enter(person)
            measured["peak_memory_bytes"] = peak_memory(lambda: self._timed_batch(person), pipeline.device)
        return Record(
            recipe=person.label,
            recipe_form=person.recipe.to_dict(),
            exactness=person.recipe.exactness,
            model=self.opened.name,
            model_hash=self.opened.sha256,
            data="the stock pipeline's images" if self.yardstick is None else self.yardstick.reference.name,
            seeds=f"{job.seed}..{job.seed + self.n - 1}",
            n=self.n,
            settings=settings,
            quality=quality,
            verdict=verdict,
            counters=count(self.stage, person),
            notes=(*notes(person), *remarks),
            started=started,
            finished=now(),
            **measured,
            **where(),
        )

    def _quality(self, person: Contender, features: Tensor, first: Tensor) -> tuple[dict[str, Quantity], str | None]:
        quality: dict[str, Quantity] = {}
        verdict: str | None = None
        own, job = self.stage.baselines[0], self.opened.job
        if self.yardstick is not None:
            quality |= self.yardstick.quality(features, job.labels(self.n) if job.class_labels else None)
            if person is not own:
                difference, verdict = self.yardstick.compare(features, self.features[own.label])
                quality |= difference
        if person is not own:
            pairs = min(len(first), len(self.probe))
            quality |= paired_quality(self.probe[:pairs], first[:pairs])
        return quality, verdict

    def _timed_batch(self, person: Contender) -> Tensor:
        return generate(self.opened.pipeline, person.job, range(self.timing_batch))
