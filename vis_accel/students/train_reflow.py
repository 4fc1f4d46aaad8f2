"""Reflow as a task; the equations are in `vis_accel.distillation.reflow`.

Pool     pairs of pure noise and where the teacher's guided path from it ends.
Batch    a pair each, and a point of the straight line between the two.
Kept     a network of the teacher's kind, variance-preserving, at the same times, predicting what it predicted. Not a flow model with
         diffusers' FlowMatchEulerDiscreteScheduler: that has no `scale_model_input`, which DiTPipeline calls, and networks of both kinds of
         pipeline take a whole time of a table. DDIM is Euler's method on the velocity, so nothing is lost by it.
Sampled  by any solver and any number of steps; `distilled` and the folder take DDIM over the trailing times, whose images are not clipped:
         what is straight would be bent.
Score    end_error is of --student-steps steps; curvature of `_MEASURED`, 0 where one step would do.
Cost     a forward and backward of the student.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from vis_accel.distillation import reflow, space
from vis_accel.students.options import DistillOptions
from vis_accel.students.pool import Pool
from vis_accel.students.stepwise import StepwiseTask, student_steps
from vis_accel.students.teacher import Teacher

__all__ = ["ReflowTask"]

_MEASURED = 8  # steps of the paths whose curvature is a score


class ReflowTask(StepwiseTask):
    """Trains a student whose paths are straight.

    Args:
        options, teacher: as `StudentTask`.
        pool, held_out: of paths from pure noise.
    """

    def __init__(self, options: DistillOptions, teacher: Teacher, pool: Pool, held_out: Pool) -> None:
        super().__init__(options, teacher, pool, held_out, steps=student_steps(options), prediction=teacher.noise.prediction)
        self.noise = replace(self.noise, clip=None)
        self.taught = replace(self.taught, noise=self.noise)
        self.table = teacher.sigmas(torch.arange(teacher.noise.times))

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Points, their network times and classes, the velocity wanted there and the seed of the masks."""
        times = reflow.nearest(torch.rand(len(indices), generator=generator), self.table)
        seed = torch.randint(2**31, (), generator=generator)
        images = self.pool.ends[indices]
        noise = reflow.noise_of(cast("Tensor", self.pool.starts)[indices], images, float(self.table[-1]))
        return space.noised(images, noise, self.table[times]), times, self.pool.labels[indices], noise - images, seed

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        x, times, labels, wanted, seed = batch
        self.mask(seed)
        sigma = self.table.to(x.device)[times]
        image = self.taught.denoise(model, x, sigma, times, labels)
        error = (reflow.velocity(image, x, sigma) - wanted).square().flatten(1).mean(1)
        loss: Tensor = (reflow.weight(sigma, self.noise.prediction) * error).mean()
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The end's error, and the mean curvature of the student's own paths."""
        device, found = next(model.parameters()).device, []
        with self.precision():
            for rows in torch.arange(len(self.held_out)).split(128):
                starts, labels = cast("Tensor", self.held_out.starts)[rows].to(device), self.held_out.labels[rows].to(device)
                found.append(self.curvature(model, starts, labels).float().cpu())
        return super().evaluate(model) | {"curvature": torch.cat(found).mean().item()}

    def curvature(self, model: nn.Module, starts: Tensor, labels: Tensor) -> Tensor:
        """Of the paths of `model` from pure noise (B)."""
        times, sigmas = (part.to(starts.device) for part in self.levels(_MEASURED))
        points, images = [starts], []
        for time, s, t in zip(times, sigmas[:-1], sigmas[1:], strict=True):
            here, there, when = (part.expand(len(starts)) for part in (s, t, time))
            images.append(self.taught.denoise(model, points[-1], here, when, labels))
            points.append(space.ddim_step(points[-1], images[-1], here, there))
        return reflow.curvature(points, images, sigmas.tolist())

    def addon(self) -> tuple[str, dict[str, Any]]:
        return "distilled", {"student": "reflow", "prediction": self.noise.prediction, "guidance": self.teacher.guidance}

    def scheduler(self) -> Any:
        from diffusers import DDIMScheduler

        options = {"timestep_spacing": "trailing", "prediction_type": self.noise.prediction, "clip_sample": False}
        return DDIMScheduler.from_config(self.teacher.pipeline.scheduler.config, **options, set_alpha_to_one=True)
