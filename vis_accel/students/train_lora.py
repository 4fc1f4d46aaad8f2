"""Consistency distillation of low-rank adapters as a task: LCM-LoRA (Luo et al. 2023, arXiv:2311.05556).

Trained  the matrices A and B of each layer's adapter and nothing else; the rest of the network is the teacher's and stays it. Batches,
         targets and loss are those of `train_consistency`; the guidance is the teacher's pinned one, in the adapters.
Text     a StableDiffusionPipeline is a teacher too, with prompts in the place of classes (prompts.py); it gets no add-on.
Kept     adapter/ beside what other students leave (`vis_accel.students.lora`); pipeline/ and the add-on have the adapters in their weights.
Differs  from the paper's code: knots, pseudo-Huber and known ends of paths as in `train_consistency`; alpha = r.
Cost     `train_consistency`'s, and two thin products a layer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.students import lora
from vis_accel.students.options import DistillOptions
from vis_accel.students.pool import Pool
from vis_accel.students.teacher import Teacher
from vis_accel.students.train_consistency import ConsistencyTask

__all__ = ["LoraTask", "rank", "targets"]


def rank(options: DistillOptions) -> int:
    """Of the adapters."""
    return 16 if options.rank is None else options.rank


def targets(options: DistillOptions, teacher: Teacher) -> list[str]:
    """The layers that get adapters; refuses what does not fit, before anything is sampled."""
    return lora.target_names(teacher.network, options.targets, rank(options))


class LoraTask(ConsistencyTask):
    """Trains adapters that make a consistency student of their teacher.

    Args:
        as `StudentTask`.
    """

    def __init__(self, options: DistillOptions, teacher: Teacher, pool: Pool, held_out: Pool) -> None:
        holder = lora.adapted(teacher.student(), targets(options, teacher), rank=rank(options), seed=options.seed)
        super().__init__(options, teacher, pool, held_out, holder)

    def network(self, model: nn.Module) -> nn.Module:
        return lora.merged(model)

    def tensors(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self.network(model).state_dict(), {}

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes the adapters, and what every student leaves."""
        lora.save_adapter(model, folder / "adapter", self.teacher.pipeline)
        super().export(model, folder)

    def save_addon(self, model: nn.Module, path: Path) -> None:
        """As for other students; of a text-to-image pipeline nothing, as `distilled` halves the rows of class-conditional ones alone."""
        if not self.teacher.prompts:
            super().save_addon(model, path)

    def addon(self) -> tuple[str, dict[str, Any]]:
        method, facts = super().addon()
        return method, facts | {"rank": rank(self.options)}
