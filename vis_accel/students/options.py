"""What may be asked of a distillation, and which requests contradict each other: checked before anything heavy is loaded."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vis_accel.errors import UnknownNameError, UsageError, shown

__all__ = ["METHODS", "DistillOptions"]

METHODS = ("consistency", "lcm-lora", "guidance", "progressive", "cfg-aware", "segments", "reflow")
SOLVERS = ("ddim", "heun")
_CHANGES_NOTHING = ("output", "threads", "resume", "compile", "evaluations", "patience")  # of the result, apart from its length
_CONSISTENT = ("consistency", "lcm-lora")
_OF = {  # options that belong to some methods only, with their defaults
    "knots": _CONSISTENT, "solver": _CONSISTENT, "ends": _CONSISTENT, "target_decay": _CONSISTENT,
    "rank": ("lcm-lora",), "targets": ("lcm-lora",), "prompts": ("lcm-lora",),
    "student_steps": ("progressive", "cfg-aware", "segments", "reflow"), "teacher_steps": ("progressive", "cfg-aware"),
    "ancestral": ("segments",), "guided_share": ("cfg-aware",), "low": ("guidance", "cfg-aware"), "high": ("guidance", "cfg-aware"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DistillOptions:
    """Everything that determines a distillation."""

    model: str  # a bundled pipeline or a folder of one
    output: Path  # folder for checkpoint, curve, grid, add-on and the student's pipeline
    method: str = "consistency"
    data: Path | None = None  # folder of CIFAR-10's layout; None: samples of the teacher itself
    prompts: Path | None = None  # lcm-lora: of a text-to-image pipeline, a file with one a line
    samples: int = 20_000  # of the teacher, where there is no data
    sampler: str = "dpm(steps=12)"  # makes them
    guidance: float | None = None  # w that the student learns; None: the one on the model's card
    low: float = 1.0  # guidance, cfg-aware: the smallest w the student takes
    high: float = 8.0  # guidance, cfg-aware: the largest
    knots: int | None = None  # consistency: noise levels between which it is consistent; None: 25
    solver: str | None = None  # consistency: the teacher's step; None: ddim on latents, heun on pixels
    ends: float | None = None  # consistency: share of the batch that learns the ends of the teacher's sampled paths; None: 0.5
    target_decay: float | None = None  # consistency: of the target network; None: 0.95
    rank: int | None = None  # lcm-lora: of the adapters; None: 16
    targets: str | None = None  # lcm-lora: regular expression of the layers that get them; None: those of the blocks
    ancestral: bool | None = None  # segments: whether the student is sampled with fresh noise between its steps; None: True
    student_steps: int | None = None  # progressive, segments: of the student in the end; reflow: of its score; None: 4
    teacher_steps: int | None = None  # progressive: of the teacher, the student's times a power of two; None: four times as many
    guided_share: float = 0.0  # cfg-aware: of the batches that are guided; 0.5 unless it is given
    dropout: float = 0.0  # of the student, if its network has any
    steps: int = 4000  # optimiser steps
    batch: int = 128
    learning_rate: float = 3e-4
    ema_decay: float = 0.999  # of the average that is evaluated and kept
    evaluations: int = 8  # in the course of the run
    patience: int | None = None  # evaluations without a better score after which the run ends
    seed: int = 0
    precision: str = "bf16"
    compile: bool = False
    threads: int | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        """Refuses what is out of range or belongs to another method.

        Raises:
            UsageError: with the option as the command line spells it.
        """
        for name, allowed in (("method", METHODS), ("solver", SOLVERS), ("precision", ("bf16", "no"))):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise UnknownNameError.of(f"--{name}", str(value), allowed)
        ranges = (
            ("samples", 16, 10**8), ("guidance", 1, 100), ("low", 1, 100), ("high", 1, 100), ("knots", 2, 1000), ("ends", 0, 1),
            ("target_decay", 0, 0.9999), ("rank", 1, 4096), ("student_steps", 1, 4096), ("teacher_steps", 2, 4096),
            ("guided_share", 0, 1), ("dropout", 0, 0.9), ("steps", 1, 10**8), ("batch", 1, 10**6),
            ("learning_rate", 1e-9, 1), ("ema_decay", 0, 0.99999), ("evaluations", 0, 10**6), ("patience", 1, 10**6),
            ("seed", 0, 2**31 - 1), ("threads", 1, 4096),
        )  # fmt: skip
        for name, low, high in ranges:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:  # false for NaN too
                raise UsageError(f"--{name.replace('_', '-')} must be {low:g} .. {high:g}; got {shown(value)}.")
        if self.low >= self.high:
            raise UsageError(f"--low must be below --high; got {self.low} and {self.high}.")
        if self.method in ("segments", "reflow") and self.data is not None:
            raise UsageError(f"{self.method} learns the teacher's own paths, so it takes no --data.", hint="progressive does")
        if self.prompts is not None and self.data is not None:
            raise UsageError("--data has images of classes, and --prompts are for a pipeline of texts.", hint="leave out --data")
        if self.method == "cfg-aware" and self.guided_share == 0.0:
            object.__setattr__(self, "guided_share", 0.5)
        defaults = {spec.name: spec.default for spec in fields(self)}
        for name, methods in _OF.items():
            if self.method not in methods and getattr(self, name) != defaults[name]:
                raise UsageError(f"--{name.replace('_', '-')} belongs to {' and '.join(methods)}, not to {self.method}.")

    def recorded(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one it goes on from, as plain values."""
        kept = {name: value for name, value in asdict(self).items() if name not in _CHANGES_NOTHING}
        return {name: str(value) if isinstance(value, Path) else value for name, value in kept.items()}
