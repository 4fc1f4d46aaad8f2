"""Guidance distillation as a task; the equations are in `vis_accel.distillation.guidance`.

Batch    images noised to a time drawn uniformly, a w drawn uniformly from the range, and the teacher's guided output there.
Cost     two rows of the teacher and a forward and backward of the student.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.distillation import guidance, space
from vis_accel.errors import UsageError
from vis_accel.generation import Job
from vis_accel.samplers import sample
from vis_accel.students.options import DistillOptions
from vis_accel.students.pool import Pool, solver_of
from vis_accel.students.scaled import PREFIX, ScaledNetwork
from vis_accel.students.task import StudentTask
from vis_accel.students.teacher import Teacher

__all__ = ["GuidanceTask"]


class GuidanceTask(StudentTask):
    """Trains a student that takes the guidance scale.

    Args:
        as `StudentTask`.

    Raises:
        UsageError: an unconditional teacher, or a pinned scale outside the student's range.
    """

    def __init__(self, options: DistillOptions, teacher: Teacher, pool: Pool, held_out: Pool) -> None:
        if teacher.guidance is None:
            raise UsageError(f"{options.model} is unconditional: there is no guidance to distil.", hint="--method consistency")
        if not options.low <= teacher.guidance <= options.high:
            raise UsageError(f"--guidance {teacher.guidance:g} is outside the student's range {options.low:g} .. {options.high:g}.")
        super().__init__(options, teacher, pool, held_out, ScaledNetwork(teacher.student()))

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Points, their noise levels, times and classes, w, and the output wanted there."""
        count = len(indices)
        times = torch.randint(0, self.teacher.noise.times, (count,), generator=generator)
        noise = torch.randn(count, *self.teacher.shape, generator=generator)
        scale = self.options.low + (self.options.high - self.options.low) * torch.rand(count, generator=generator)
        seed = torch.randint(2**31, (), generator=generator)
        sigma = self.teacher.sigmas(times)
        x = space.noised(self.pool.ends[indices], noise, sigma)
        x, sigma, times, labels, scale = (part.to(self.device) for part in (x, sigma, times, self.pool.labels[indices], scale))
        self.teacher.network.to(self.device)
        with self.precision():
            wanted = self.teacher.guided_output(x, sigma, times, labels, scale)
        return x, sigma, times, labels, scale, wanted, seed

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        x, sigma, times, labels, scale, wanted, seed = batch
        self.mask(seed)

        def network(sample: Tensor, **rest: Any) -> Any:
            return model(sample, scale=scale, **rest)

        return guidance.output_loss(self.teacher.output(network, x, sigma, times, labels), wanted).mean()

    def end(self, model: nn.Module, starts: Tensor, labels: Tensor) -> Tensor:
        solver = solver_of(self.options.sampler)
        scale = torch.full((len(starts),), float(self.teacher.guidance or 1), device=starts.device)

        def denoise(x: Tensor, sigma: float) -> Tensor:
            rows = torch.full((len(x),), sigma, device=x.device)
            times = torch.full((len(x),), self.teacher.noise.time_at(sigma), device=x.device)
            return self.teacher.denoise(lambda inner, **rest: model(inner, scale=scale, **rest), x, rows, times, labels)

        return sample(denoise, solver, starts, solver.knots(None, self.teacher.noise))

    def addon(self) -> tuple[str, dict[str, Any]]:
        return "guidance-distilled", {"low": self.options.low, "high": self.options.high, "guidance": self.teacher.guidance}

    def scheduler(self) -> Any:
        return self.teacher.pipeline.scheduler

    def network(self, model: Any) -> nn.Module:
        """The stock network at the pinned scale."""
        fixed: nn.Module = model.at(float(self.teacher.guidance or 1))
        return fixed

    def tensors(self, model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        own = {f"{PREFIX}{name}": value for name, value in model.scale.state_dict().items()}
        return model.network.state_dict(), own

    def grid_job(self) -> Job:
        return self.class_rows(steps=50)
