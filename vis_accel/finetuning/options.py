"""What may be asked of a fine-tuning, and which requests contradict each other: checked before anything heavy is loaded."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vis_accel.errors import UnknownNameError, UsageError, shown

__all__ = ["ADAPTERS", "AUGMENTATIONS", "DISTILLATIONS", "MODES", "FinetuneOptions"]

ADAPTERS = ("lora", "dora", "pissa")
MODES = ("full", "head", *ADAPTERS)
DISTILLATIONS = ("logit", "feature", "token")
AUGMENTATIONS = ("none", "light", "full")
OPTIMIZERS = ("adamw", "sgd", "muon")
_CHANGES_NOTHING = ("output", "threads", "resume", "compile", "workers")  # of the result, apart from rounding


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Everything that determines a fine-tuning."""

    model: str  # timm/NAME, a bundled classifier of timm's kind, or a folder that a fine-tuning wrote
    data: Path  # holds train/CLASS/*, and val/CLASS/* or test/CLASS/* or both
    output: Path  # folder for checkpoint, curve, history, card and the model
    random_weights: bool = False  # for timm/NAME: start from the architecture alone
    size: int | None = None  # side of the images in pixels; None: the model's own
    epochs: int = 3
    steps: int | None = None  # optimiser steps; overrides epochs
    batch: int | None = None  # images a step, over all processes; None: 64, or all there are
    mode: str = "full"  # what is trained: everything, the classifier alone, or adapters and the classifier
    rank: int | None = None  # of the adapters; None: 8
    alpha: float | None = None  # adapters are added times alpha / rank; None: 2 * rank, and rank for pissa
    targets: str | None = None  # regular expression over the names of linear layers that get adapters; None: all outside the head
    lora_plus: float | None = None  # learning rate of the matrices B over that of the matrices A
    learning_rate: float | None = None  # None: by mode, see `highest_rate`
    weight_decay: float = 0.05
    layer_decay: float | None = None  # learning rate of a layer over that of the next one
    optimizer: str = "adamw"
    ema_decay: float = 0.998  # of the moving average of the weights, which is what is evaluated and kept
    teacher: str | None = None  # cifar10-features, timm/NAME, or a folder that a fine-tuning wrote
    distill: str | None = None  # what the student learns from it; None with a teacher: "logit"
    distill_weight: float | None = None  # share of the teacher in the loss; None: 0.5
    temperature: float | None = None  # of the softened probabilities; None: 1 for logit, and the teacher's hard decision for token
    patch_dropout: float | None = None  # share of the patches left out during training
    recipe: str | None = None  # token reduction that is on during training
    augment: str = "light"
    mixup: float | None = None  # parameter of the Beta distribution that mixes pairs of images; None: no mixing
    validation_share: float | None = None  # of each class of train/, set aside where there is no val/
    skip_broken: bool = False  # leave out images that do not open
    patience: int | None = None  # evaluations without a better score after which the run ends; None: it runs to the end
    seed: int = 0
    precision: str = "bf16"
    compile: bool = False
    threads: int | None = None
    workers: int = 4  # threads that decode images
    resume: bool = False

    def __post_init__(self) -> None:
        """Refuses what is out of range or contradicts itself.

        Raises:
            UsageError: with the option as the command line spells it.
        """
        self._check_numbers()
        for name, allowed in (("mode", MODES), ("distill", DISTILLATIONS), ("augment", AUGMENTATIONS), ("optimizer", OPTIMIZERS)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise UnknownNameError.of(f"--{name}", str(value), allowed)
        if self.precision not in ("bf16", "no"):
            raise UsageError(f"--precision is bf16 or no; got {shown(self.precision)}.")
        self._check_company()

    def _check_numbers(self) -> None:
        ranges = (
            ("size", 8, 4096), ("epochs", 1, 100_000), ("steps", 1, 10**8), ("batch", 1, 10**6), ("rank", 1, 4096), ("patience", 1, 10**6),
            ("threads", 1, 4096), ("workers", 1, 256), ("seed", 0, 2**31 - 1), ("weight_decay", 0, 10), ("distill_weight", 0, 1),
            ("lora_plus", 1, 1000),
        )  # fmt: skip
        for name, low, high in ranges:
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                raise UsageError(f"{_flag(name)} must be from {low:g} to {high:g}; got {value!r}.")
        opened = (
            ("alpha", 1e6), ("learning_rate", 100.0), ("layer_decay", 1.0), ("temperature", 1000.0), ("patch_dropout", 1.0),
            ("mixup", 100.0), ("validation_share", 1.0), ("ema_decay", 1.0),
        )  # fmt: skip
        for name, below in opened:
            value = getattr(self, name)
            if value is not None and not 0 < value < below:
                raise UsageError(f"{_flag(name)} must lie between 0 and {below:g}, both excluded; got {value!r}.")

    def _check_company(self) -> None:
        """Options that do nothing without, or beside, another one."""
        adapters = self.mode in ADAPTERS
        for name in ("rank", "alpha", "targets", "lora_plus"):
            if getattr(self, name) is not None and not adapters:
                raise UsageError(f"{_flag(name)} is for adapters; --mode {self.mode} has none.", hint="--mode lora, dora or pissa")
        for name in ("distill", "distill_weight", "temperature"):
            if getattr(self, name) is not None and self.teacher is None:
                raise UsageError(f"{_flag(name)} needs a teacher.", hint="--teacher cifar10-features, timm/NAME, or a folder")
        if self.temperature is not None and self.distill == "feature":
            raise UsageError("--temperature softens probabilities; --distill feature compares features.", hint="leave out --temperature")
        if self.layer_decay is not None and self.mode == "head":
            raise UsageError("--layer-decay does nothing with --mode head: one layer is trained.", hint="leave out one of them")
        if self.distill == "feature" and self.mode == "head":
            raise UsageError("--distill feature teaches the layers that --mode head leaves as they are.", hint="--distill logit")

    @property
    def distillation(self) -> str | None:
        """What is learned from the teacher; None without one."""
        return None if self.teacher is None else self.distill or "logit"

    @property
    def highest_rate(self) -> float:
        """The learning rate at its highest: 10 times smaller for a whole trained network than for adapters or a head."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-3 if self.random_weights or self.mode in ADAPTERS or self.mode == "head" else 1e-4

    def recorded(self) -> dict[str, Any]:
        """The options that determine the result, as plain values."""
        values = {name: str(value) if isinstance(value, os.PathLike) else value for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if name not in _CHANGES_NOTHING}

    def given(self) -> dict[str, Any]:
        """Those of `recorded` that differ from their defaults."""
        plain = {spec.name: spec.default for spec in fields(self)}
        return {name: value for name, value in self.recorded().items() if value != plain[name]}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
