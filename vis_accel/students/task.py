"""What all students share as the one trainer takes them: batches of a pool, scores against the teacher's ends, and what is kept.

Kept     pipeline/            a stock diffusers folder in bfloat16
         addon.safetensors    what the weights differ by from the teacher's, in steps of 8 bits, for `distilled` and its kin
         grid.png             samples at fixed seeds
Random   numbers of dropout come from PyTorch's global generator, which each pass of a step seeds alike: the student and its target see the
         same mask, and a resumed run draws what an uninterrupted one does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel import addons
from vis_accel.errors import RunError
from vis_accel.generation import Job
from vis_accel.students.options import DistillOptions
from vis_accel.students.pool import Pool
from vis_accel.students.teacher import Teacher

__all__ = ["StudentTask"]

_ROWS = 10  # of the grid, and columns
_TEXT_ROWS = 2  # of large images


class StudentTask(ABC):
    """Trains a student.

    Args:
        options: what was asked for.
        teacher: whose student it is.
        pool: what is noised.
        held_out: starts and ends of the teacher's paths that are not in the pool.
        model: what is trained; None: a copy of the teacher's network.
    """

    judged_by = "end_error"

    def __init__(self, options: DistillOptions, teacher: Teacher, pool: Pool, held_out: Pool, model: nn.Module | None = None) -> None:
        self.options, self.teacher, self.pool, self.held_out = options, teacher, pool, held_out
        self.name = f"{options.model}, {options.method}"
        self.model: nn.Module = teacher.student() if model is None else model
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = options.dropout
            if hasattr(module, "embedding_table"):  # a row a class, of which few are ever met
                module.requires_grad_(False)
        self.examples = len(pool)

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return next(self.model.parameters()).device

    def precision(self) -> Any:
        """The autocast of passes outside the trainer's own."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.options.precision == "bf16")

    def mask(self, seed: Tensor) -> None:
        """Seeds what dropout draws from, if there is any."""
        if self.options.dropout:
            torch.manual_seed(int(seed))

    @abstractmethod
    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """As `training.Task` has it."""

    @abstractmethod
    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        """As `training.Task` has it."""

    @abstractmethod
    def end(self, model: nn.Module, starts: Tensor, labels: Tensor) -> Tensor:
        """Where the student takes pure noise (n x C x H x W, data scale 1) by the least of its calls."""

    @abstractmethod
    def addon(self) -> tuple[str, dict[str, Any]]:
        """The name of the method that puts the student on a pipeline, and what it must know."""

    @abstractmethod
    def scheduler(self) -> Any:
        """Of diffusers, for the student's own folder."""

    @abstractmethod
    def grid_job(self) -> Job:
        """What the picture shows."""

    def class_rows(self, steps: int) -> Job:
        """Ten samples of each of ten classes, a class a row, or one of each of the first prompts; unguided: guidance is in the weights."""
        if not self.teacher.classes:
            return Job(steps=steps)
        if self.teacher.prompts:
            return Job(prompts=self.teacher.prompts[: _TEXT_ROWS**2], guidance_scale=1.0, steps=steps)
        labels = tuple(row * self.teacher.classes // _ROWS for row in range(_ROWS) for _ in range(_ROWS))
        return Job(class_labels=labels, guidance_scale=1.0, steps=steps)

    def network(self, model: nn.Module) -> nn.Module:
        """The stock network that `model` is."""
        return model

    def tensors(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The state of the teacher's architecture, and what the student has besides."""
        return model.state_dict(), {}

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Root mean square distance of the student's ends from the teacher's, at starts it was not trained on."""
        errors, device = [], next(model.parameters()).device
        for rows in torch.arange(len(self.held_out)).split(128):
            with self.precision():
                found = self.end(model, self.held_out.starts[rows].to(device), self.held_out.labels[rows].to(device))  # type: ignore[index]
            errors.append((found.float().cpu() - self.held_out.ends[rows]).square().flatten(1).mean(1))
        return {self.judged_by: torch.cat(errors).mean().sqrt().item()}

    def stop(self, history: list[dict[str, float]]) -> bool:
        """Whether the last `patience` evaluations brought nothing better."""
        scores = [row[self.judged_by] for row in history if self.judged_by in row]
        if self.options.patience is None or not scores:
            return False
        return len(scores) - 1 - scores.index(min(scores)) >= self.options.patience

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes pipeline, picture and add-on."""
        from vis_accel.zoo.export import save_grid, save_pipeline

        self.save_addon(model, folder / "addon.safetensors")
        pipeline = self.pipeline(model)
        side = _TEXT_ROWS if self.teacher.prompts else _ROWS
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # schedulers of diffusers draw from the global generator where the pipeline gives them none
            save_grid(pipeline, folder / "grid.png", self.grid_job(), rows=side, columns=side)
        save_pipeline(pipeline, folder / "pipeline")

    def save_addon(self, model: nn.Module, path: Path) -> None:
        """Writes what the student's weights differ by from the teacher's."""
        method, facts = self.addon()
        base = self.teacher.network.cpu()
        own, (state, besides) = base.state_dict(), self.tensors(model)
        changed = {name: value for name, value in state.items() if not torch.equal(value.cpu(), own[name])}
        if not changed:
            raise RunError("The student is its teacher: training changed no weight.", hint="more --steps, a higher --learning-rate")
        tensors = addons.differences(base, changed) | {name: value.to(torch.bfloat16) for name, value in besides.items()}
        facts = facts | {"model": self.options.model, "training": self.options.recorded()}
        addons.save(path, tensors, method=method, model=base, facts=facts)

    def pipeline(self, model: nn.Module) -> Any:
        """A stock pipeline with the student's network."""
        old = self.teacher.pipeline
        network = self.network(model)
        if self.teacher.prompts:
            parts = old.components | {"unet": network, "scheduler": self.scheduler()}
            return type(old)(**parts, requires_safety_checker=old.config.requires_safety_checker)
        if not self.teacher.classes:
            return type(old)(unet=network, scheduler=self.scheduler())
        names = {index: name for name, index in (old.labels or {}).items()} or None
        made = type(old)(transformer=network, vae=old.vae, scheduler=self.scheduler(), id2label=names)
        made.register_to_config(id2label=names)  # its constructor does not, and the names would be lost with the folder
        return made
