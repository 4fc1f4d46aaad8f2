"""`finetune`: from options to a folder with the network, its card and its curve.

Order    what is quick to refuse comes first: options, folders, the network, the teacher; then the images are decoded; then it trains.
Output   model.safetensors and config.json (timm's layout), finetune.json and finetune.md (the card), curve.png, history.json, options.json,
         checkpoint.safetensors, and with patience best.safetensors.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vis_accel import training
from vis_accel.apply import accelerate
from vis_accel.errors import DataError, RunError, UsageError
from vis_accel.eval.interval import Interval
from vis_accel.files import write_atomic
from vis_accel.finetuning import adapters, card, distill, scales
from vis_accel.finetuning.data import Folder, scan, without
from vis_accel.finetuning.opening import Opened, head_modules, open_network
from vis_accel.finetuning.options import ADAPTERS, FinetuneOptions
from vis_accel.finetuning.pixels import Pixels, broken_error, headers, stored_side
from vis_accel.finetuning.student import PREFIX, Student, drop_patches
from vis_accel.finetuning.task import FinetuneTask
from vis_accel.handle import Handle
from vis_accel.recipe import Recipe
from vis_accel.zoo import timm_folder

__all__ = ["Finetuned", "finetune"]

_OPTIONS = "options.json"
_BATCH = 64
_ROOM = 1.15  # images are kept this much larger than they are trained at, for random crops


@dataclass(frozen=True)
class Finetuned:
    """How a fine-tuning ended.

    Attributes:
        folder: holds the network.
        top1: by part: "validation", "test", and both "under the recipe" where there was one; empty in processes other than the first.
        card: everything, as plain values; empty in processes other than the first.
    """

    folder: Path
    top1: dict[str, Interval]
    card: dict[str, Any]


def finetune(options: FinetuneOptions, *, report: Callable[[str], None] = lambda line: None, command: str | None = None) -> Finetuned:
    """Fine-tunes a network; alone or as one of the processes that `accelerate launch` started.

    Args:
        options: what is wanted.
        report: receives lines of progress, in the first process only.
        command: how to do it again; None: the command line of this process.

    Raises:
        UsageError: options that do not fit the network or each other, an output folder that holds something.
        DataError: images or folders that are missing or broken.
        ModelError: weights that cannot be had or are broken.
        RunError: the loss is not finite any more.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    say = report if first else (lambda line: None)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    task, folder, config = _prepared(options, say)
    before = task.scores(task.student.network, ["validation"]) if task.opened.head_kept else {}
    for name, share in before.items():
        say(f"top-1 before training, {name}: {share.value:.2%} of {share.n}")
    _record(options, folder, first)
    result = training.train(task, config, output=options.output, resume=options.resume, report=say)
    if not first:
        return Finetuned(options.output, {}, {})
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    made = card.made(task, folder, config, result, before=before, command=command or _command(), processes=processes)
    card.write(made, options.output)
    return Finetuned(options.output, {name: value for name, value in task.result.items() if isinstance(value, Interval)}, made)


def _prepared(options: FinetuneOptions, say: Callable[[str], None]) -> tuple[FinetuneTask, Folder, training.TrainingConfig]:
    """What is trained, on what, and how long; refuses early what it refuses."""
    _check_output(options)
    folder = scan(options.data, validation_share=options.validation_share)
    opened = open_network(
        options.model, random_weights=options.random_weights, size=options.size, classes=folder.classes, seed=options.seed
    )  # fmt: skip
    say(f"{options.model} at {opened.size} px" + "".join(f"; {note}" for note in opened.notes))
    teacher = None
    if options.teacher is not None:
        teacher = distill.open_teacher(options.teacher, kind=str(options.distillation), classes=folder.classes)
    student, rates, patch_drop = _student(options, opened, teacher)
    handle = _reduction(options, student)
    folder, parts = _loaded(folder, options, opened.size, say)
    config = _config(options, len(folder.train))
    task = FinetuneTask(
        options, opened, student, classes=folder.classes, parts=parts, steps=config.steps, batch_size=config.batch_size, teacher=teacher,
        lr_scales=rates, patch_drop=patch_drop, handle=handle,
    )  # fmt: skip
    say(_summary(folder, student, config))
    return task, folder, config


def _student(options: FinetuneOptions, opened: Opened, teacher: distill.Teacher | None) -> tuple[Student, dict[str, float], Any]:
    """The network as it is trained, learning rates that differ, and the layer that drops patches."""
    network, heads = opened.network, head_modules(opened.network)
    places = scales.layers(network) if options.layer_decay is not None else None
    patch_drop = None if options.patch_dropout is None else drop_patches(network, options.patch_dropout)
    holder = network
    if options.mode in ADAPTERS:
        targets = adapters.target_names(network, options.targets, heads)
        holder = adapters.adapted(
            network, options.mode, targets=targets, heads=heads, rank=options.rank or 8, alpha=options.alpha, seed=options.seed
        )  # fmt: skip
    elif options.mode == "head":
        network.requires_grad_(False)
        for name in heads:
            network.get_submodule(name).requires_grad_(True)
    else:
        network.requires_grad_(True)
    channels = 0
    if teacher is not None and options.distillation == "feature":
        channels = teacher.features(torch.zeros(1, 3, opened.size, opened.size)).shape[1]
    student = Student(holder, distill=options.distillation, size=opened.size, channels=channels, seed=options.seed)
    rates = scales.rate_scales(student, places=places, decay=options.layer_decay, lora_plus=options.lora_plus, prefix=PREFIX)
    student.eval()  # fresh layers begin in training mode
    return student, rates, patch_drop


def _reduction(options: FinetuneOptions, student: Student) -> Handle | None:
    """The recipe's handle on the network, suspended until training begins; None without a recipe."""
    if options.recipe is None:
        return None
    for method in Recipe.parse(options.recipe).methods:
        if method.family != "tokens":
            message = f"--recipe is the token reduction to train with; {method.name} is of the family {method.family}."
            raise UsageError(message, hint="--recipe 'tome(r=8)'")
    handle = accelerate(student.network, options.recipe)
    handle.suspend()
    return handle


def _loaded(folder: Folder, options: FinetuneOptions, size: int, say: Callable[[str], None]) -> tuple[Folder, dict[str, Pixels]]:
    """The images by part, and the folder without those that do not open, which are an error unless they shall be skipped."""
    parts = {"train": folder.train, "validation": folder.validation, "test": folder.test}
    pixels, broken = {}, []
    for name, part in parts.items():
        if part is not None:
            sizes, unread = headers(part, workers=options.workers)
            room = _ROOM if name == "train" and options.augment != "none" else 1.0
            sound = without(part, unread)
            pixels[name] = Pixels(sound, stored_side(sizes, size, room=room), workers=options.workers)
            broken += unread + pixels[name].broken
    if not broken:
        return folder, pixels
    if not options.skip_broken:
        raise broken_error(broken, sum(len(part) for part in parts.values() if part is not None))
    say(f"left out {len(broken)} images that do not open: {', '.join(path.name for path, _ in broken[:5])}{' ...' if broken[5:] else ''}")
    for loaded in pixels.values():
        if missing := set(range(len(folder.classes))) - set(loaded.part.labels):
            raise DataError(f"No image of {folder.classes[min(missing)]} in {loaded.part.name} opens.")
    found = {name: loaded.part for name, loaded in pixels.items()}
    return replace(folder, train=found["train"], validation=found["validation"], test=found.get("test"), skipped=len(broken)), pixels


def _config(options: FinetuneOptions, examples: int) -> training.TrainingConfig:
    batch = options.batch or min(_BATCH, examples)
    if batch > examples:
        raise UsageError(f"--batch {batch} is more than the {examples} images there are to train with.", hint=f"--batch {examples}")
    per_epoch = examples // batch
    steps = options.steps or options.epochs * per_epoch
    if options.patience is not None and steps <= per_epoch:
        raise UsageError(f"--patience does nothing in a run of {steps} steps: it is evaluated once, at the end.", hint="more --epochs")
    return training.TrainingConfig(
        steps=steps, batch_size=batch, learning_rate=options.highest_rate, optimizer=options.optimizer, weight_decay=options.weight_decay,
        betas=(0.9, 0.999), warmup=0.1, decay=0.8, ema_decay=options.ema_decay, mixed_precision=options.precision, compile=options.compile,
        channels_last=True, seed=options.seed, evaluate_every=per_epoch,
    )  # fmt: skip


def _summary(folder: Folder, student: Student, config: training.TrainingConfig) -> str:
    counts = f"{len(folder.train)} images of {len(folder.classes)} classes, {len(folder.validation)} to validate ({folder.validation.name})"
    return f"{counts}; {student.trained:,} parameters trained; {config.steps} steps of {config.batch_size}"


def _check_output(options: FinetuneOptions) -> None:
    """Refuses a folder that holds another network, and a run that is finished."""
    place = options.output
    if options.resume and (place / card.CARD).exists():
        raise UsageError(f"{place} is finished: there is nothing to resume.", hint="give another --output to train again")
    started = (place / training.CHECKPOINT).exists()
    if not options.resume and started:
        raise UsageError(f"{place / training.CHECKPOINT} exists already.", hint="add --resume to go on from it, or give another --output")
    if not started and (place / timm_folder.WEIGHTS).exists():
        raise UsageError(f"{place} holds a network already, which would be overwritten.", hint="give another --output")


def _record(options: FinetuneOptions, folder: Folder, first: bool) -> None:
    """Writes the options at the start; at a resumption, holds them against those the run began with."""
    path = options.output / _OPTIONS
    wanted = json.loads(json.dumps(options.recorded() | {"data_sha256": folder.sha256}))
    if options.resume and path.exists():
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"Cannot read {path}: {error}") from error
        different = [f"{key}: {found.get(key)} there, {value} here" for key, value in wanted.items() if found.get(key) != value]
        if different:
            message = f"The run in {options.output} was begun with other options ({'; '.join(different)})."
            raise UsageError(message, hint="use the same options, or another --output")
    elif first:
        options.output.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(wanted, indent=1) + "\n")


def _command() -> str:
    import shlex

    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
