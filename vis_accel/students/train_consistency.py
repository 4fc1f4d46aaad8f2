"""Consistency distillation as a task; the equations are in `vis_accel.distillation.consistency`.

Step     of the teacher, from a knot to the next lower one, with its guidance; the student learns where the target network takes the lower
         point. A share of the batch has starts whose paths were sampled before, from pure noise and from lower knots, and learns their
         ends.
Largest  noise: pure, without a trace of an image, since that is what sampling starts from.
Cost     ddim: a forward of the teacher (two rows an image if guided) and one of the target, a forward and backward of the student.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.distillation import consistency, space
from vis_accel.generation import Job
from vis_accel.students.options import DistillOptions
from vis_accel.students.pool import Pool
from vis_accel.students.task import StudentTask
from vis_accel.students.teacher import Teacher

__all__ = ["ConsistencyTask", "knots"]


def knots(options: DistillOptions) -> int:
    """How many the student has, that of the identity not counted."""
    return 25 if options.knots is None else options.knots


class ConsistencyTask(StudentTask):
    """Trains a consistency student.

    Args:
        as `StudentTask`.
    """

    def __init__(self, options: DistillOptions, teacher: Teacher, pool: Pool, held_out: Pool, model: nn.Module | None = None) -> None:
        super().__init__(options, teacher, pool, held_out, model)
        self.knots = knots(options)
        self.times = torch.tensor(consistency.grid_times(self.knots, teacher.noise.times))
        self.sigmas = teacher.sigmas(self.times)
        self.solver = options.solver or ("ddim" if teacher.latent else "heun")
        self.ends = 0.0 if pool.starts is None else 0.5 if options.ends is None else options.ends
        self.decay = 0.95 if options.target_decay is None else options.target_decay
        self.width = consistency.huber_width(teacher.shape[0] * teacher.shape[1] * teacher.shape[2])
        self.target: nn.Module = copy.deepcopy(self.model).requires_grad_(False).train()
        self.companions = {"target": self.target}

    def function(self, network: Callable[..., Any], x: Tensor, places: Tensor, labels: Tensor) -> Tensor:
        """f of `network` at knots `places` (B; 0 the lowest)."""
        sigma, times = self.sigmas.to(x.device)[places], self.times.to(x.device)[places]
        image = self.teacher.denoise(network, x, sigma, times, labels)
        if self.teacher.latent:
            return consistency.lcm_function(x, image, times)
        return consistency.edm_function(x, image, sigma, float(self.sigmas[0]))

    @torch.no_grad()
    def lower(self, x: Tensor, places: Tensor, labels: Tensor) -> Tensor:
        """The point of the teacher's path one knot below."""
        sigmas, times = self.sigmas.to(x.device), self.times.to(x.device)
        s, t = sigmas[places], sigmas[places - 1]
        image = self.teacher.guided(x, s, times[places], labels)
        reached = space.ddim_step(x, image, s, t)
        if self.solver == "ddim":
            return reached
        again = self.teacher.guided(reached, t, times[places - 1], labels)
        slope = (space.along(1 / s, x) * (x - image) + space.along(1 / t, x) * (reached - again)) / 2
        return x + space.along(t - s, x) * slope

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Points, their knots, classes, where they shall end, and the seed of the masks."""
        count, known = len(indices), round(self.ends * len(indices))
        places = torch.randint(1, self.knots + 1, (count,), generator=generator)
        noise = torch.randn(count, *self.teacher.shape, generator=generator)
        seed = torch.randint(2**31, (), generator=generator)
        images, labels = self.pool.ends[indices], self.pool.labels[indices]
        sigma = self.sigmas[places]
        pure = noise / space.along(space.alpha(sigma), noise)
        x = torch.where(space.along(places == self.knots, noise).bool(), pure, space.noised(images, noise, sigma))
        if self.pool.starts is not None and self.pool.places is not None:
            x[:known], places[:known] = self.pool.starts[indices[:known]], self.pool.places[indices[:known]]
        x, places, labels, images = (part.to(self.device) for part in (x, places, labels, images))
        self.teacher.network.to(self.device)
        self.target.to(self.device)
        rest = slice(known, None)
        with self.precision():
            below = self.lower(x[rest], places[rest], labels[rest])
            self.mask(seed)
            ends = self.function(self.target, below, places[rest] - 1, labels[rest])
        return x, places, labels, torch.cat([images[:known], ends.float()]), seed

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        x, places, labels, wanted, seed = batch
        self.mask(seed)
        found = self.function(model, x, places, labels)
        return consistency.pseudo_huber(found - wanted, self.width).mean()

    @torch.no_grad()
    def end_step(self, step: int) -> None:
        """Moves the target network towards the student."""
        for ours, theirs in zip(self.target.parameters(), self.model.parameters(), strict=True):
            ours.lerp_(theirs, 1 - self.decay)

    def end(self, model: nn.Module, starts: Tensor, labels: Tensor) -> Tensor:
        places = torch.full((len(starts),), self.knots, device=starts.device)
        return self.function(model, starts, places, labels)

    def addon(self) -> tuple[str, dict[str, Any]]:
        facts = {"student": "consistency", "knots": self.knots, "guidance": self.teacher.guidance}
        return "distilled", facts | {"boundary": "lcm" if self.teacher.latent else "edm"}

    def scheduler(self) -> Any:
        from diffusers import LCMScheduler

        return LCMScheduler.from_config(self.teacher.pipeline.scheduler.config, original_inference_steps=self.knots)

    def grid_job(self) -> Job:
        return self.class_rows(steps=4)
