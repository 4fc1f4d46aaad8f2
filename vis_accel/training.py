"""One trainer for every network this package trains: on accelerate, resumable, with an exponential moving average.

A task says what is trained (`Task`); the trainer owns the loop. Which examples a step sees and which random numbers it draws are
functions of (seed, step, process) alone, so a run killed at any moment and resumed sees the same next batch, and two processes with half
a batch each see together what one process sees.

    train(task, TrainingConfig(steps=1000, batch_size=128, learning_rate=1e-3), output=Path("runs/x"))

The output folder holds checkpoint.safetensors (weights, average, optimiser; written atomically every few minutes), history.json (loss,
learning rate and evaluations), curve.png and whatever the task exports. The learning rate warms up linearly, stays, and falls linearly
to zero over the last part of the run ("warm-up, stable, decay").
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vis_accel.checkpoint import read_checkpoint, write_checkpoint
from vis_accel.errors import RunError, UsageError
from vis_accel.files import write_atomic
from vis_accel.machine import machine, versions

__all__ = ["Task", "TrainingConfig", "TrainingResult", "batch_indices", "learning_rate", "train"]

CHECKPOINT = "checkpoint.safetensors"
HISTORY = "history.json"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that determines a run, apart from the task."""

    steps: int  # optimiser steps
    batch_size: int  # examples per step, over all processes
    learning_rate: float  # at its highest
    optimizer: str = "adamw"  # "adamw", "sgd" (Nesterov momentum 0.9) or "muon" (its vectors by AdamW)
    weight_decay: float = 0.0  # of matrices and kernels; vectors are never decayed
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: float = 0.05  # share of the steps over which the learning rate rises
    decay: float = 0.5  # share of the steps, at the end, over which it falls to zero
    ema_decay: float = 0.999  # of the moving average of the weights
    clip: float | None = 1.0  # largest norm of the gradient
    mixed_precision: str = "bf16"  # "bf16" or "no"
    compile: bool = True
    channels_last: bool = False
    seed: int = 0
    checkpoint_seconds: float = 180.0
    evaluate_every: int = 0  # steps; 0: only at the end

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UsageError(f"A training needs steps >= 1 and batch_size >= 1; got {self.steps} and {self.batch_size}.")
        if self.optimizer not in ("adamw", "sgd", "muon"):
            raise UsageError(f"optimizer is adamw, sgd or muon; got {self.optimizer!r}.")
        if self.mixed_precision not in ("bf16", "no"):
            raise UsageError(f"mixed_precision is bf16 or no; got {self.mixed_precision!r}.")


class Task(Protocol):
    """What is trained. The trainer calls these and nothing else.

    A task may also have `lr_scales`, a mapping from names of the model's parameters to what their learning rate is multiplied by (1 for
    those not in it); `begin_step(step)`, called before each batch; `end_step(step)`, called after the weights have changed;
    `companions`, networks by name that are trained along (a moving average of its own) and belong into the checkpoint; and
    `stop(history)`, asked after each evaluation whether to end early.
    """

    @property
    def name(self) -> str:
        """What a checkpoint belongs to."""

    @property
    def model(self) -> nn.Module:
        """The network."""

    @property
    def examples(self) -> int:
        """Number of training examples."""

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """The examples `indices`, augmented with random numbers of `generator`; called under no_grad, outside the compiled step."""

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        """The scalar to be minimised; runs under autocast."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Scores of the averaged model, by name."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes the averaged model, and pictures of it, below `folder`."""


@dataclass(frozen=True)
class TrainingResult:
    """How a run ended: scores of the averaged model, images seen, seconds of training."""

    scores: dict[str, float]
    images: int
    seconds: float
    history: list[dict[str, float]]


def batch_indices(step: int, *, examples: int, batch_size: int, seed: int) -> Tensor:
    """Indices of the examples of `step` (int64, batch_size): a fresh permutation each epoch, the last incomplete batch of it left out."""
    per_epoch = max(1, examples // batch_size)
    epoch, place = divmod(step, per_epoch)
    order = torch.randperm(examples, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[place * batch_size : (place + 1) * batch_size]


def learning_rate(step: int, config: TrainingConfig) -> float:
    """Learning rate of `step`: linear warm-up, constant, linear to zero."""
    rise = (step + 1) / max(1.0, config.warmup * config.steps)
    fall = (config.steps - step) / max(1.0, config.decay * config.steps)
    return config.learning_rate * min(1.0, rise, fall)


def train(
    task: Task,
    config: TrainingConfig,
    *,
    output: Path,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> TrainingResult:
    """Trains `task` and exports it below `output`.

    Args:
        task: what is trained.
        config: how; a resumed run must have the configuration of the checkpoint.
        output: folder for checkpoint, history, curve and export.
        resume: go on from the checkpoint in `output`, if there is one.
        report: receives a line of progress now and then.

    Raises:
        UsageError: a checkpoint of another configuration, or one that would be overwritten.
        RunError: the loss is no longer finite; the last good checkpoint stays.
    """
    run = _Run(task, config, output, report)
    run.begin(resume)
    for step in range(run.step, config.steps):
        if run.stopped:
            break
        run.advance(step)
    return run.finish()


class _Run:
    """The state of one training."""

    def __init__(self, task: Task, config: TrainingConfig, output: Path, report: Callable[[str], None]) -> None:
        from accelerate import Accelerator
        from timm.utils import ModelEmaV3

        self.task, self.config, self.output, self.report = task, config, output, report
        self.accelerator = Accelerator(mixed_precision="no")  # autocast is ours: accelerate's would wrap the user's forward
        if config.batch_size % self.accelerator.num_processes:
            raise UsageError(f"A batch of {config.batch_size} cannot be shared by {self.accelerator.num_processes} processes.")
        if config.channels_last:
            task.model.to(memory_format=torch.channels_last)
        self.model, self.optimizer = self.accelerator.prepare(task.model, _optimizer(task.model, config, getattr(task, "lr_scales", {})))
        self.ema = ModelEmaV3(task.model, decay=config.ema_decay, use_warmup=True, foreach=True)
        self.forward = torch.compile(self.model) if config.compile else self.model
        self.step, self.seconds, self.stopped = 0, 0.0, False
        self.history: list[dict[str, float]] = []
        self.losses: list[Tensor] = []

    def begin(self, resume: bool) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / CHECKPOINT
        if path.exists() and not resume:
            raise UsageError(f"{path} exists already.", hint="add --resume to go on from it, or give another --output")
        if path.exists():
            facts, rest = read_checkpoint(path)
            if facts["task"] != self.task.name:
                raise UsageError(f"{path} is a checkpoint of {facts['task']}, not of {self.task.name}.")
            _same_configuration(facts["config"], self.config)
            rest.restore(self._networks(), self.optimizer.optimizer)
            self.step, self.seconds, self.history = facts["step"], facts["seconds"], facts["history"]
            self.stopped = self._stops()
            self.report(f"resumed at step {self.step} of {self.config.steps}")
        self.model.train()
        self.started = self.saved = self.told = time.monotonic()
        self.first_step = self.step

    def advance(self, step: int) -> None:
        config, process = self.config, self.accelerator.process_index
        if begin := getattr(self.task, "begin_step", None):
            begin(step)
        mine = batch_indices(step, examples=self.task.examples, batch_size=config.batch_size, seed=config.seed)
        mine = mine.chunk(self.accelerator.num_processes)[process]
        generator = torch.Generator().manual_seed((config.seed * 1_000_003 + step) * 64 + process)
        with torch.no_grad():
            batch = tuple(part.to(self.accelerator.device) for part in self.task.batch(mine, generator))
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, config) * group["lr_scale"]
        with _attention(self.accelerator.device), self._precision():
            loss = self.task.loss(self.forward, *batch)
        self.accelerator.backward(loss)
        if config.clip is not None:
            self.accelerator.clip_grad_norm_(self.model.parameters(), config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.task.model, step=step)
        if end := getattr(self.task, "end_step", None):
            end(step)
        self.losses.append(loss.detach())
        self.step = step + 1
        self._watch()

    def _precision(self) -> Any:
        return torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.mixed_precision == "bf16")

    def _watch(self) -> None:
        """Reports, evaluates and saves when it is time."""
        now, last = time.monotonic(), self.step == self.config.steps
        evaluate = last or (self.config.evaluate_every and self.step % self.config.evaluate_every == 0)
        if now - self.told > 20 or evaluate or self.step == self.first_step + 1:
            self._note(self.task.evaluate(self.ema.module.eval()) if evaluate else {})
            self.told = time.monotonic()
            self.stopped = bool(evaluate) and not last and self._stops()
        if last or self.stopped or now - self.saved > self.config.checkpoint_seconds:
            self.save()

    def _stops(self) -> bool:
        """Whether the task ends the run here; the first process decides for all, as their scores may differ in the last digits."""
        from accelerate.utils import broadcast_object_list

        asked = getattr(self.task, "stop", None)
        return bool(asked and broadcast_object_list([bool(asked(self.history))])[0])

    def _note(self, scores: dict[str, float]) -> None:
        mean = torch.stack(self.losses).float().mean().item()
        self.losses.clear()
        if not math.isfinite(mean):
            raise RunError(
                f"The loss of {self.task.name} is {mean} at step {self.step}; the last good checkpoint is {self.output / CHECKPOINT}.",
                hint="lower the learning rate and go on with --resume",
            )
        spent = self.elapsed()
        rate = (self.step - self.first_step) / max(1e-9, time.monotonic() - self.started)
        row = {"step": self.step, "seconds": round(spent, 1), "loss": mean, "lr": learning_rate(self.step - 1, self.config)} | scores
        self.history.append(row)
        left = (self.config.steps - self.step) / rate
        found = "".join(f"  {name} {value:.4g}" for name, value in scores.items())
        images = rate * self.config.batch_size
        self.report(f"step {self.step}/{self.config.steps}  loss {mean:.4f}{found}  {images:.0f} images/s  {left / 60:.1f} min left")

    def elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.started

    def save(self) -> None:
        self.saved = time.monotonic()
        if not self.accelerator.is_main_process or any(not torch.isfinite(loss) for loss in self.losses):
            return
        facts = {"task": self.task.name, "config": asdict(self.config), "step": self.step}
        facts |= {"seconds": self.elapsed(), "history": self.history}
        write_checkpoint(self.output / CHECKPOINT, facts, self._networks(), self.optimizer.optimizer)

    def _networks(self) -> dict[str, nn.Module]:
        return {"model": self.task.model, "ema": self.ema.module, **getattr(self.task, "companions", {})}

    def finish(self) -> TrainingResult:
        seconds = self.history[-1]["seconds"] if self.history else 0.0
        known = {"step", "seconds", "loss", "lr"}
        scores = {name: value for name, value in (self.history[-1] if self.history else {}).items() if name not in known}
        result = TrainingResult(scores, self.step * self.config.batch_size, seconds, self.history)
        if self.accelerator.is_main_process:
            self.task.export(self.ema.module.eval().cpu(), self.output)  # tasks keep their data, and write, on the CPU
            facts = {"config": asdict(self.config), "seconds": seconds, "processes": self.accelerator.num_processes}
            facts |= {"machine": machine(), "versions": versions(), "history": self.history}
            write_atomic(self.output / HISTORY, json.dumps(facts, indent=1))
            _draw_curve(self.history, self.output / "curve.png", self.task.name)
        return result


def _optimizer(model: nn.Module, config: TrainingConfig, scales: Mapping[str, float]) -> torch.optim.Optimizer:
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for scale in sorted({1.0, *scales.values()}, reverse=True):
        for vectors in (False, True):  # class tokens and positions are vectors too
            plain: dict[str, Any] = {"params": [], "weight_decay": 0.0 if vectors else config.weight_decay, "lr_scale": scale}
            groups[scale, vectors] = plain | ({"use_fallback": True} if vectors and config.optimizer == "muon" else {})
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[scales.get(name, 1.0), not (parameter.ndim > 1 and len(parameter) > 1)]["params"].append(parameter)
    return _made([group for (scale, _), group in groups.items() if group["params"] or scale == 1.0], config)


def _made(groups: list[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=config.learning_rate, momentum=0.9, nesterov=True)
    if config.optimizer == "muon":
        from timm.optim.muon import Muon

        muon: torch.optim.Optimizer = Muon(groups, lr=config.learning_rate, momentum=0.9, nesterov=True, betas=config.betas)
        return muon
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)


def _attention(device: torch.device) -> Any:
    """On the CPU, attention by plain products: the backward pass of the fused kernel took 40% of a step at 65 tokens (torch 2.15)."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.MATH]) if device.type == "cpu" else nullcontext()


def _same_configuration(found: dict[str, Any], wanted: TrainingConfig) -> None:
    ours = json.loads(json.dumps(asdict(wanted)))
    free = {"checkpoint_seconds", "evaluate_every", "compile"}  # these change nothing of the result
    different = [f.name for f in fields(wanted) if f.name not in free and found.get(f.name) != ours[f.name]]
    if different:
        words = ", ".join(f"{name}: {found.get(name)} there, {ours[name]} here" for name in different)
        message = f"The checkpoint was made with another configuration ({words})."
        raise UsageError(message, hint="use the same options, or another --output")


def _draw_curve(history: list[dict[str, float]], path: Path, title: str) -> None:
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.2), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="loss", title=title)
    axes.plot([row["step"] for row in history], [row["loss"] for row in history], linewidth=1)
    axes.grid(alpha=0.3)
    if scored := [row for row in history if "top1" in row]:
        right = axes.twinx()
        right.set_ylabel("top-1 of the averaged weights")
        right.plot([row["step"] for row in scored], [row["top1"] for row in scored], "o-", color="tab:orange", linewidth=1, markersize=3)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    write_atomic(path, image.getvalue())
