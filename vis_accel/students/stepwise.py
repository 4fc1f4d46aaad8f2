"""What students of exactly N steps share: their knots, DDIM over them, and what they are called in an add-on.

Knots    the trailing times T, T - T/N, ... and the end: diffusers' DDIMScheduler has a name for them, so a stock folder takes them too.
Steps    x' = D + (t / s) (x - D), D clipped as the teacher's pipeline clips it; with eta = 1 DDPM's, which diffusers has too.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.distillation import progressive
from vis_accel.generation import Job
from vis_accel.samplers import sample
from vis_accel.samplers.ddim import Ddim
from vis_accel.samplers.noise import Prediction
from vis_accel.students.options import DistillOptions
from vis_accel.students.pool import Pool
from vis_accel.students.task import StudentTask
from vis_accel.students.teacher import Teacher

__all__ = ["StepwiseTask", "student_steps"]


def student_steps(options: DistillOptions) -> int:
    """How many steps the student has in the end."""
    return 4 if options.student_steps is None else options.student_steps


class StepwiseTask(StudentTask):
    """A student that is sampled by DDIM over its own knots and no others.

    Args:
        options, teacher, pool, held_out, model: as `StudentTask`.
        steps: of the student.
        prediction: what its network is to say.
        aware: whether guidance stays outside, so that the student is called with it.
        eta: of DDIM, 0 or 1: whether fresh noise is added between its steps.
    """

    def __init__(
        self, options: DistillOptions, teacher: Teacher, pool: Pool, held_out: Pool, model: nn.Module | None = None,
        *, steps: int, prediction: Prediction, aware: bool = False, eta: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(options, teacher, pool, held_out, model)
        self.steps, self.aware, self.eta = steps, aware, eta
        self.noise = replace(teacher.noise, prediction=prediction)
        self.taught = replace(teacher, network=self.model, noise=self.noise, guidance=None)

    def levels(self, count: int) -> tuple[Tensor, Tensor]:
        """Times of a run of `count` steps (count), and its noise levels (count + 1, the last 0)."""
        times = torch.tensor(progressive.trailing_times(count, self.teacher.noise.times))
        return times, torch.cat([self.teacher.sigmas(times), torch.zeros(1)])

    def end(self, model: nn.Module, starts: Tensor, labels: Tensor) -> Tensor:
        taught = replace(self.taught, network=model)
        scale = self.teacher.guidance if self.aware else None

        def denoise(x: Tensor, sigma: float) -> Tensor:
            rows = torch.full((len(x),), sigma, device=x.device)
            return taught.guided(x, rows, torch.full((len(x),), self.noise.time_at(sigma), device=x.device), labels, scale)

        solver = Ddim(steps=self.steps, schedule="trailing", eta=self.eta)
        return sample(denoise, solver, starts, solver.knots(None, self.noise))

    def addon(self) -> tuple[str, dict[str, Any]]:
        facts = {"student": "progressive", "steps": self.steps, "eta": self.eta, "prediction": self.noise.prediction}
        return "distilled", facts | {"guidance": None if self.aware else self.teacher.guidance}

    def scheduler(self) -> Any:
        from diffusers import DDIMScheduler, DDPMScheduler

        options: dict[str, Any] = {"timestep_spacing": "trailing", "prediction_type": self.noise.prediction}
        config = self.teacher.pipeline.scheduler.config
        if self.eta:
            return DDPMScheduler.from_config(config, **options, variance_type="fixed_small")
        return DDIMScheduler.from_config(config, **options, set_alpha_to_one=True)

    def grid_job(self) -> Job:
        job = self.class_rows(steps=self.steps)
        return replace(job, guidance_scale=self.teacher.guidance) if self.aware and self.teacher.classes else job
