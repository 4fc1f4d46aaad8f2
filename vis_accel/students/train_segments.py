"""Segment distillation as a task; the equations are in `vis_accel.distillation.segments`.

Pool     the teacher's paths, with guidance, and their states at the student's knots and landings, sampled once with as fine a solver as one
         likes.
Batch    a path each, and one of its segments: where it begins, and the D that lands on the path in one step.
Sampled  by DDIM over exactly these steps: with `ancestral` with eta = 1 (DDPM), else with none.
Cost     a forward and backward of the student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vis_accel.distillation import progressive, segments
from vis_accel.errors import UsageError
from vis_accel.students.options import DistillOptions
from vis_accel.students.pool import Pool
from vis_accel.students.stepwise import StepwiseTask, student_steps
from vis_accel.students.teacher import Teacher

__all__ = ["SegmentsTask", "stops"]


def stops(options: DistillOptions, teacher: Teacher) -> tuple[float, ...]:
    """The noise levels, falling, at which the paths' states are kept: inner knots and landings of a student of segments; else none."""
    if options.method != "segments":
        return ()
    knots = tuple(teacher.sigmas(torch.tensor(progressive.trailing_times(student_steps(options), teacher.noise.times))).tolist())
    return tuple(sorted({*knots[1:], *segments.landings(knots, eta(options))}, reverse=True))


def eta(options: DistillOptions) -> float:
    """DDIM's share of fresh noise."""
    return 0.0 if options.ancestral is False else 1.0


class SegmentsTask(StepwiseTask):
    """Trains a student on segments of its teacher's paths.

    Args:
        options, teacher, held_out: as `StudentTask`.
        pool: of paths with their states at `stops`.

    Raises:
        UsageError: one step of a network that predicts noise, or steps without noise in a pipeline that clips.
    """

    judged_by = "segment_error"

    def __init__(self, options: DistillOptions, teacher: Teacher, pool: Pool, held_out: Pool) -> None:
        steps = student_steps(options)
        if steps == 1 and teacher.noise.prediction == "epsilon":
            reason = "A network that predicts noise cannot say in one step what the image is."
            raise UsageError(reason, hint="--student-steps 2 or more, or --method progressive, which teaches it v first")
        if eta(options) == 0 and teacher.noise.clip is not None:
            reason = f"{type(teacher.pipeline).__name__} clips images; DDIM of diffusers then goes on with noise that is not theirs."
            raise UsageError(reason, hint="--ancestral")
        super().__init__(options, teacher, pool, held_out, steps=steps, prediction=teacher.noise.prediction, eta=eta(options))
        self.times, self.sigmas = self.levels(steps)
        knots = self.sigmas.tolist()
        path = (knots[0], *stops(options, teacher), 0.0)
        landings = segments.landings(knots, self.eta)
        self.landings = torch.tensor(landings)
        self.begin, self.land = (torch.tensor([path.index(level) for level in levels]) for levels in (knots[:-1], landings))
        self.loose = replace(self.taught, noise=replace(self.noise, clip=None))  # a clipped error would teach nothing

    def segment(self, pool: Pool, rows: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Where the segments `places` (B) of the paths `rows` (B) of `pool` begin, and the D that lands on the path again."""
        starts, ends = cast("Tensor", pool.starts)[rows], pool.ends[rows]
        between = [] if pool.states is None else [pool.states[rows].float()]
        path, all_rows = torch.cat([starts[:, None], *between, ends[:, None]], dim=1), torch.arange(len(rows))
        x, landed = path[all_rows, self.begin[places]], path[all_rows, self.land[places]]
        return x, progressive.two_steps(x, landed, self.sigmas[places], self.landings[places])

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Points, their knots and classes, the D wanted there and the seed of the masks."""
        places = torch.randint(0, self.steps, (len(indices),), generator=generator)
        seed = torch.randint(2**31, (), generator=generator)
        x, wanted = self.segment(self.pool, indices, places)
        return x, places, self.pool.labels[indices], wanted, seed

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        x, places, labels, wanted, seed = batch
        self.mask(seed)
        sigma, times = self.sigmas.to(x.device)[places], self.times.to(x.device)[places]
        found = replace(self.loose, network=cast("nn.Module", model)).guided(x, sigma, times, labels)
        loss: Tensor = (segments.output_weight(sigma, self.noise.prediction) * (found - wanted).square().flatten(1).mean(1)).mean()
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Root mean square error of the network's output over all segments of paths it was not trained on."""
        device, errors = next(model.parameters()).device, []
        for rows in torch.arange(len(self.held_out)).split(128):
            for knot in range(self.steps):
                places = torch.full((len(rows),), knot)
                x, wanted = self.segment(self.held_out, rows, places)
                parts = (part.to(device) for part in (x, places, self.held_out.labels[rows], wanted))
                with self.precision():
                    errors.append(self.loss(model, *parts, torch.tensor(0)) * len(rows))
        return {self.judged_by: (torch.stack(errors).sum() / (self.steps * len(self.held_out))).sqrt().item()}
