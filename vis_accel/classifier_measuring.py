"""One row of a classifier's card, measured: its answers on every image, its work, its time at each batch size, its memory."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.classifier_inputs import Inputs, together
from vis_accel.classifier_stage import ClassifierStage, Entrant
from vis_accel.errors import DataError, NoEffectError, NotApplicableError, UsageError
from vis_accel.eval.accuracy import agreement, top1
from vis_accel.eval.counters import macs, peak_memory
from vis_accel.eval.paired_accuracy import paired_difference, verdict
from vis_accel.eval.speed import Timings, interleave
from vis_accel.eval.yardstick import quantity
from vis_accel.journal import row_key
from vis_accel.machine import machine, versions
from vis_accel.parts import product, standing_in
from vis_accel.record import Quantity, Record, Speed
from vis_accel.rows import now, speed, where
from vis_accel.zoo.opened import OpenedClassifier

__all__ = ["Answers", "ClassifierMeasurer"]

ROUNDS = 100  # of interleaved timing, at most: the time there is ends it sooner
LEAST_ROUNDS = 6  # the fewest whose median has a 95% interval
WARM_CALLS = 3  # after the first one, to see what a call costs
COUNTED = 64  # images whose multiplications are counted


@dataclass(frozen=True)
class Answers:
    """What a classifier said: a class for each image (n), the hash of all logits, and what its methods counted meanwhile."""

    classes: Tensor
    logits_sha256: str
    reports: tuple[str, ...] = ()


@dataclass
class ClassifierMeasurer:
    """Measures the entrants of one stage.

    Attributes:
        opened: the model.
        stage: who takes part.
        inputs: what it is given: images, or random numbers, which give no quality.
        data_name: what the images are called, or why there are none.
        data_sha256: of the images there are; empty without.
        batch: images a call, in the quality run.
        timing_batches: images a call, in the timing; the first is the row's own.
        timing_seconds: for the timing of one row.
        progress: receives a label, batches done, batches in all.
        asked: images a row that were asked for; those that do not open are among them.
        answers: of those who have been asked, by label.
        first_call: seconds of the first call of those who have made one, compilation included.
        work: multiply-accumulates an image of those who have been asked.
    """

    opened: OpenedClassifier
    stage: ClassifierStage
    inputs: Inputs
    data_name: str
    data_sha256: str
    batch: int
    timing_batches: tuple[int, ...]
    timing_seconds: float
    progress: Callable[[str, int, int], None]
    asked: int = 0
    answers: dict[str, Answers] = field(default_factory=dict)
    first_call: dict[str, float] = field(default_factory=dict)
    work: dict[str, float] = field(default_factory=dict)

    @property
    def network(self) -> nn.Module:
        """The network, with whoever is on it."""
        return self.stage.network

    @property
    def judged(self) -> bool:
        """Whether answers are held against labels: not those of random weights."""
        return self.inputs.n > 0 and self.opened.trained

    def key(self, entrant: Entrant) -> str:
        """The row's key in the journal: the hash of everything that determines it."""
        facts = {"model": self.opened.sha256, "recipe": entrant.label, "form": entrant.recipe.to_dict(), "n": self.asked}
        facts |= {"data": self.data_sha256, "size": list(self.inputs.preparation.size), "batches": [self.batch, *self.timing_batches]}
        facts |= {"dtype": str(self.inputs.like.dtype), "device": str(self.inputs.like.device), "threads": torch.get_num_threads()}
        return row_key(facts | {"versions": versions(), "processor": machine()["processor"]})

    def first_look(self) -> float:
        """Lets the stock network make its first call and a few more, whose shortest it returns, in seconds.

        Raises:
            UsageError: the network does not take images of this size.
            NotApplicableError: it answers with something else than a row of numbers an image.
        """
        stock, batch = self.stage.baselines[0], self.timing_batches[0]
        self.stage.enter(stock)
        x, seconds = self.inputs.whole(0, batch), []
        for _ in range(1 + WARM_CALLS):
            started = time.perf_counter()
            try:
                logits = self._logits(x)
            except (RuntimeError, AssertionError, ValueError, TypeError) as error:
                height, width = self.inputs.preparation.size
                reason = (str(error) or type(error).__name__).splitlines()[0]
                raise UsageError(f"{self.opened.name} does not run on images of {height} x {width} pixels: {reason}") from error
            seconds.append(time.perf_counter() - started)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != batch:
            message = f"{self.opened.name} does not answer with a row of numbers for each image; only classifiers are measured."
            raise NotApplicableError(message)
        self.first_call[stock.label] = seconds[0]
        return min(seconds[1:])

    def ask(self, entrant: Entrant) -> Answers:
        """The entrant's answers on all images, or on one random batch; asked once.

        Raises:
            DataError: logits that are not finite.
            NoEffectError: an approximation that left every logit as it was, and the work too.
        """
        if entrant.label in self.answers:
            return self.answers[entrant.label]
        self.stage.enter(entrant)  # nobody has called it before, so what its methods report is of these images
        sha, classes, total = hashlib.sha256(), list[Tensor](), self.inputs.n or self.timing_batches[0]
        batch = self.batch if self.inputs.n else total
        for start in range(0, total, batch):
            end = min(start + batch, total)
            x = self.inputs.whole(start, batch) if entrant.compiled else self.inputs.batch(start, end)
            started = time.perf_counter()
            logits = self._logits(x)[: end - start].float().cpu()
            self.first_call.setdefault(entrant.label, time.perf_counter() - started)
            sha.update(logits.contiguous().numpy().tobytes())
            classes.append(self._classes(logits, entrant))
            self.progress(entrant.label, math.ceil(end / batch), math.ceil(total / batch))
        found = Answers(torch.cat(classes), sha.hexdigest(), tuple(entrant.reported()))
        self.work[entrant.label] = self._count(entrant)
        self._refuse_idle(entrant, found)
        self.answers[entrant.label] = found
        return found

    def time(self, people: Sequence[Entrant], batch: int, at_most: float | None) -> Timings:
        """Times everybody in `people`, interleaved, each call on the same images for all; a call is TIMED_IMAGES images or one batch."""
        feed = self.inputs.feed(batch)
        calls = {person.label: 0 for person in people}
        by_label = {person.label: person for person in people}
        times = together(batch)

        def run(label: str) -> None:
            for _ in range(times):
                self._logits(feed[calls[label] % len(feed)])
                calls[label] += 1

        spent = 0.0
        for person in people:  # compilation for this shape is not part of the timing
            self.stage.enter(person)
            self._logits(feed[0])
            started = time.perf_counter()
            self._logits(feed[0])
            spent += 2 * times * (time.perf_counter() - started)
        seconds = self.timing_seconds / len(self.timing_batches)
        seconds = max(seconds, (LEAST_ROUNDS + 1) * spent) if at_most is None else min(seconds, at_most)
        runs = {label: lambda label=label: run(label) for label in by_label}
        return interleave(runs, rounds=ROUNDS, warmup=0, budget_s=seconds, prepare=lambda label: self.stage.enter(by_label[label]))

    def parts(self, entrant: Entrant, at_most: float | None) -> tuple[str, ...]:
        """What the parts of a combination gain alone, their product, and what they gain together: a line, or none."""
        own, batch = self.stage.baselines[0], self.timing_batches[0]
        make = self.stage.entrant
        with standing_in(entrant.recipe, self.stage.everyone, lambda recipe: make(str(recipe), recipe), self.stage.drop) as (
            parts,
            missing,
        ):
            if not parts:
                return ()
            timings = self.time(tuple(dict.fromkeys((own, *parts, entrant))), batch, at_most)
            return (product(timings, own.label, [part.label for part in parts], entrant.label, missing),)

    def record(self, entrant: Entrant, started: str, timings: Sequence[Timings], remarks: Sequence[str] = ()) -> Record:
        """The finished row, from the answers of everybody so far and the timings at each batch size."""
        quality, judgement = self._quality(entrant)
        own, *others = (self._speed(entrant, timing, batch) for timing, batch in zip(timings, self.timing_batches, strict=True))
        self.stage.enter(entrant)
        x = self.inputs.whole(0, self.timing_batches[0])
        height, width = self.inputs.preparation.size
        return Record(
            recipe=entrant.label,
            recipe_form=entrant.recipe.to_dict(),
            exactness=entrant.recipe.exactness,
            model=self.opened.name,
            model_hash=self.opened.sha256,
            data=self.data_name,
            seeds="none" if self.inputs.n else "0",
            n=self.inputs.n if self.judged else 0,
            settings={
                "size": f"{height} x {width}",
                "batch": self.timing_batches[0],
                "input": self.inputs.kind,
                "samples": self.asked or None,
                "dtype": str(self.inputs.like.dtype).removeprefix("torch."),
                "device": str(self.inputs.like.device),
            },
            quality=quality,
            verdict=judgement,
            speed=own,
            other_speeds=tuple(others),
            counters={"GMACs": round(self.work[entrant.label] / 1e9, 4)},
            notes=(*entrant.lines, *self.answers[entrant.label].reports, *self._gains(entrant, own), *remarks),
            first_call_seconds=self.first_call[entrant.label],
            unstable=tuple(timings[0].unstable(entrant.label)),
            peak_memory_bytes=peak_memory(lambda: self._logits(x), self.inputs.like.device),
            started=started,
            finished=now(),
            **where(),
        )

    def _quality(self, entrant: Entrant) -> tuple[dict[str, Quantity], str | None]:
        if not self.judged or self.inputs.images is None:
            return {}, None
        stock, mine, labels = (
            self.answers[self.stage.baselines[0].label].classes,
            self.answers[entrant.label].classes,
            self.inputs.images.labels,
        )
        found = {"top-1": quantity(top1(mine, labels), higher_is_better=True)}
        if entrant is self.stage.baselines[0]:
            return found, None
        difference = paired_difference(stock, mine, labels)
        found["top-1 difference"] = quantity(difference, higher_is_better=True)
        found["agreement"] = quantity(agreement(mine, stock), higher_is_better=True)
        return found, verdict(difference)

    def _speed(self, entrant: Entrant, timings: Timings, batch: int) -> Speed:
        baselines = [base.label for base in self.stage.baselines]
        return replace(speed(entrant.label, timings, baselines, batch * together(batch)), batch=batch)

    def _gains(self, entrant: Entrant, own: Speed) -> list[str]:
        """How much of the work that was saved is in the time, against the baseline that is as much compiled as the recipe."""
        base = self.stage.baselines[-1 if entrant.compiled else 0]
        ratio = own.ratios.get(base.label)
        if entrant in self.stage.baselines or ratio is None or ratio.value is None:
            return []
        slower = [f"slower than {base.label}"] if ratio.high is not None and ratio.high < 1 else []
        saved = self.work[base.label] / self.work[entrant.label]
        if abs(saved - 1) < 0.01:
            return slower
        return [f"FLOP ratio {saved:.2f}, speed ratio {ratio.value:.2f} to {base.label} ({ratio.value / saved:.0%} of it)", *slower]

    def _count(self, entrant: Entrant) -> float:
        """Multiply-accumulates an image: of the entrant's real work on these images, in float and not compiled."""
        total = min(COUNTED, self.inputs.n) or self.timing_batches[0]
        batch = min(self.timing_batches[0], total)
        found = 0
        with self.stage.countable(entrant):
            for start in range(0, total, batch):
                found += macs(self.network, self.inputs.batch(start, min(start + batch, total)))
        return found / total

    def _refuse_idle(self, entrant: Entrant, found: Answers) -> None:
        stock = self.stage.baselines[0].label
        if entrant.recipe.exactness == "equivalent" or stock not in self.answers or entrant.float_twin != entrant.recipe:
            return
        if found.logits_sha256 == self.answers[stock].logits_sha256 and self.work[entrant.label] == self.work[stock]:
            count = len(found.classes)
            message = f"{entrant.label} changed nothing: all logits of {count} images, and the work, are those of the stock network."
            raise NoEffectError(message, hint="options that do more; vis-accel bench --dry-run says what a recipe will do")

    def _logits(self, x: Tensor) -> Any:
        with torch.no_grad():
            return self.network(x)

    def _classes(self, logits: Tensor, entrant: Entrant) -> Tensor:
        """The class of each row of logits (n x c)."""
        wrong = int((~logits.isfinite()).any(dim=1).sum())
        if wrong:
            hint = None if self.inputs.like.dtype == torch.float32 else "--dtype float32"
            raise DataError(f"{entrant.label} answers {wrong} of {len(logits)} images with numbers that are not finite.", hint=hint)
        return logits.argmax(dim=1)
