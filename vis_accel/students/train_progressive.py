"""Progressive distillation as a task, one halving at a time; the equations are in `vis_accel.distillation.progressive`.

Halving  images noised to one of the N times of the student's run; the teacher takes two steps from there, the student learns the one step
         that gets as far. The first teacher is the pipeline with its guidance, every later one the student before, a row an image.
Convert  a network that predicts noise learns v first, at the teacher's own steps.
Aware    with `guided_share` above 0 guidance stays outside: that share of the batches is guided on both sides with one w for each row,
         drawn from the range, and the others are not; a tenth of the labels is the null class. Such a student is called with guidance.
Cost     two calls of the teacher (of two rows while it is guided) and a forward and backward of the student.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from vis_accel.distillation import progressive, space
from vis_accel.students.options import DistillOptions
from vis_accel.students.pool import Pool
from vis_accel.students.stepwise import StepwiseTask, student_steps
from vis_accel.students.teacher import Teacher

__all__ = ["ProgressiveTask", "Stage", "stages"]

_LABEL_DROPOUT = 0.1
_AVERAGE = "ema."  # of the averaged weights in a checkpoint


class Stage(NamedTuple):
    """Part of a progressive distillation.

    Attributes:
        steps: of the student that comes out.
        halves: whether its steps are two of its teacher's; else they are the same, and only what is predicted changes.
    """

    steps: int
    halves: bool


def stages(options: DistillOptions, prediction: str) -> tuple[Stage, ...]:
    """The parts of a distillation whose teacher predicts `prediction`.

    Raises:
        UsageError: steps that no halving leads to.
    """
    student = student_steps(options)
    teacher = 4 * student if options.teacher_steps is None else options.teacher_steps
    convert = (Stage(teacher, False),) if prediction == "epsilon" else ()
    return convert + tuple(Stage(steps, True) for steps in progressive.halvings(teacher, student))


class ProgressiveTask(StepwiseTask):
    """Trains the student of one stage.

    Args:
        options, pool, held_out: as `StudentTask`.
        base: the pipeline it all began with.
        teacher: of this stage.
        stage: what comes out.
    """

    def __init__(self, options: DistillOptions, base: Teacher, pool: Pool, held_out: Pool, *, teacher: Teacher, stage: Stage) -> None:
        prediction: Any = "v_prediction" if teacher.noise.prediction == "epsilon" else teacher.noise.prediction
        super().__init__(
            options, base, pool, held_out, copy.deepcopy(teacher.network).requires_grad_(True),
            steps=stage.steps, prediction=prediction, aware=options.guided_share > 0,
        )  # fmt: skip
        self.name = f"{options.model}, {options.method}, {stage.steps} steps"
        self.guide, self.stage = teacher, stage
        self.times, self.sigmas = self.levels(2 * stage.steps if stage.halves else stage.steps)

    def target(self, x: Tensor, places: Tensor, labels: Tensor, scale: Tensor | None) -> Tensor:
        """The D that the student shall have at the teacher's knots `places` (B)."""
        times, sigmas = self.times.to(x.device), self.sigmas.to(x.device)
        image = self.guide.guided(x, sigmas[places], times[places], labels, scale)
        if not self.stage.halves:
            return image
        middle = space.ddim_step(x, image, sigmas[places], sigmas[places + 1])
        again = self.guide.guided(middle, sigmas[places + 1], times[places + 1], labels, scale)
        reached = space.ddim_step(middle, again, sigmas[places + 1], sigmas[places + 2])
        return progressive.two_steps(x, reached, sigmas[places], sigmas[places + 2])

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Points, their noise levels, times and classes, w (1: unguided), the D wanted there and the seed of the masks."""
        count, stride = len(indices), 2 if self.stage.halves else 1
        places = stride * torch.randint(0, self.stage.steps, (count,), generator=generator)
        noise = torch.randn(count, *self.teacher.shape, generator=generator)
        draws, drawn = torch.rand(count + 1, generator=generator), torch.rand(count, generator=generator)
        seed = torch.randint(2**31, (), generator=generator)
        labels, scale = self.pool.labels[indices], torch.ones(count)
        if self.aware and draws[-1] < self.options.guided_share:
            scale = self.options.low + (self.options.high - self.options.low) * drawn
        elif self.aware:
            labels = torch.where(draws[:-1] < _LABEL_DROPOUT, self.teacher.null, labels)
        sigma = self.sigmas[places]
        x = space.noised(self.pool.ends[indices], noise, sigma)
        x = torch.where(space.along(places == 0, x).bool(), noise / space.along(space.alpha(sigma), x), x)
        x, sigma, places, labels, scale = (part.to(self.device) for part in (x, sigma, places, labels, scale))
        self.guide.network.to(self.device)
        with self.precision():
            wanted = self.target(x, places, labels, scale if self.aware and bool((scale != 1).any()) else None)
        return x, sigma, self.times.to(self.device)[places], labels, scale, wanted.float(), seed

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        x, sigma, times, labels, scale, wanted, seed = batch
        self.mask(seed)
        taught = replace(self.taught, network=cast("nn.Module", model))  # or the trainer's wrapping of it
        found = taught.guided(x, sigma, times, labels, scale if self.aware and bool((scale != 1).any()) else None)
        loss: Tensor = (progressive.snr_weight(sigma) * (found - wanted).square().flatten(1).mean(1)).mean()
        return loss

    def graduated(self, tensors: Mapping[str, Tensor]) -> Teacher:
        """The student as the next stage's teacher, from the tensors of its checkpoint."""
        self.model.load_state_dict({name.removeprefix(_AVERAGE): value for name, value in tensors.items() if name.startswith(_AVERAGE)})
        network = self.model.eval().requires_grad_(False)
        return replace(self.taught, network=network, guidance=self.teacher.guidance if self.aware else None)
