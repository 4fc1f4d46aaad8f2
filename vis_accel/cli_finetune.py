"""`vis-accel finetune`, from parsed arguments to a folder with the network and its card."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["finetune"]


class Mode(str, enum.Enum):
    """What is trained."""

    full = "full"
    head = "head"
    lora = "lora"
    dora = "dora"
    pissa = "pissa"


class Distill(str, enum.Enum):
    """What is learned from a teacher."""

    logit = "logit"
    feature = "feature"
    token = "token"  # noqa: S105 - a head of the network, no secret


class Augment(str, enum.Enum):
    """How training images are changed."""

    none = "none"
    light = "light"
    full = "full"


class Shown(str, enum.Enum):
    """How the result is printed."""

    auto = "auto"
    human = "human"
    json = "json"
    quiet = "quiet"


def finetune(
    model: Annotated[str, typer.Option("--model", "-m", help="timm/NAME, cifar10-vit, or a folder that finetune wrote.")],
    data: Annotated[Path, typer.Option("--data", help="Folder with train/CLASS/*, and val/CLASS/* or test/CLASS/*.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: runs/MODEL.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="timm/NAME without its weights.")] = False,
    size: Annotated[int | None, typer.Option("--size", help="Side of the images in pixels. Default: the model's.")] = None,
    epochs: Annotated[int, typer.Option("--epochs")] = 3,
    steps: Annotated[int | None, typer.Option("--steps", help="Optimiser steps; overrides --epochs.")] = None,
    batch: Annotated[int | None, typer.Option("--batch", help="Images a step, over all processes. Default: 64.")] = None,
    mode: Annotated[Mode, typer.Option("--mode", help="What is trained: everything, the head, or adapters and the head.")] = Mode.full,
    rank: Annotated[int | None, typer.Option("--rank", help="Of the adapters. Default: 8.")] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="Adapters count alpha / rank. Default: 2 rank; pissa: rank.")] = None,
    targets: Annotated[str | None, typer.Option("--targets", help="Regular expression over layer names. Default: all linear.")] = None,
    lora_plus: Annotated[float | None, typer.Option("--lora-plus", help="Rate of B over rate of A; the paper's is 16.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--learning-rate", help="At its highest. Default: 1e-4; 1e-3 unless full.")] = None,
    weight_decay: Annotated[float, typer.Option("--weight-decay")] = 0.05,
    layer_decay: Annotated[float | None, typer.Option("--layer-decay", help="Rate of a layer over that of the next, such as 0.7.")] = None,
    optimizer: Annotated[str, typer.Option("--optimizer", help="adamw, sgd or muon.")] = "adamw",
    ema_decay: Annotated[float, typer.Option("--ema-decay", help="Of the averaged weights, which are kept.")] = 0.998,
    teacher: Annotated[str | None, typer.Option("--teacher", help="cifar10-features, timm/NAME, or a folder.")] = None,
    distill: Annotated[Distill | None, typer.Option("--distill", help="What is learned from it. Default: logit.")] = None,
    distill_weight: Annotated[float | None, typer.Option("--distill-weight", help="Its share of the loss. Default: 0.5.")] = None,
    temperature: Annotated[float | None, typer.Option("--temperature", help="Default: 1; token: the hard decision.")] = None,
    patch_dropout: Annotated[float | None, typer.Option("--patch-dropout", help="Share of patches left out in training.")] = None,
    recipe: Annotated[str | None, typer.Option("--recipe", help="Token reduction that is on in training: 'tome(r=8)'.")] = None,
    augment: Annotated[Augment, typer.Option("--augment", help="How training images are changed.")] = Augment.light,
    mixup: Annotated[bool, typer.Option("--mixup", help="Mix pairs of images, Beta(0.2, 0.2).")] = False,
    validation_share: Annotated[float | None, typer.Option("--validation-share", help="Of train/, set aside to validate with.")] = None,
    skip_broken: Annotated[bool, typer.Option("--skip-broken", help="Leave out images that do not open.")] = False,
    patience: Annotated[int | None, typer.Option("--patience", help="Epochs without a better score to stop after.")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="bf16 or no.")] = "bf16",
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the step.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads.")] = None,
    workers: Annotated[int, typer.Option("--workers", help="Threads that decode images.")] = 4,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")] = False,
    format: Annotated[Shown, typer.Option("--format", help="auto is human on a terminal and plain text elsewhere.")] = Shown.auto,
) -> None:
    """Fine-tune a timm model on a folder of images: full, head or adapters, with a teacher, with tokens dropped."""
    from vis_accel.finetuning.options import FinetuneOptions

    options = FinetuneOptions(
        model=model, data=data, output=output or Path("runs") / Path(model).name, random_weights=random_weights, size=size, epochs=epochs,
        steps=steps, batch=batch, mode=mode.value, rank=rank, alpha=alpha, targets=targets, lora_plus=lora_plus,
        learning_rate=learning_rate, weight_decay=weight_decay, layer_decay=layer_decay, optimizer=optimizer, ema_decay=ema_decay,
        teacher=teacher, distill=None if distill is None else distill.value, distill_weight=distill_weight, temperature=temperature,
        patch_dropout=patch_dropout, recipe=recipe, augment=augment.value, mixup=0.2 if mixup else None,
        validation_share=validation_share, skip_broken=skip_broken, patience=patience, seed=seed, precision=precision, compile=compile,
        threads=threads, workers=workers, resume=resume,
    )  # fmt: skip
    from vis_accel.finetuning.run import finetune as run

    loud = format in (Shown.auto, Shown.human)
    done = run(options, report=(lambda line: typer.echo(line, err=True)) if loud else (lambda line: None))
    if not done.card:
        return  # a process that is not the first
    if format is Shown.json:
        typer.echo(json.dumps(done.card))
        return
    if loud:
        for name, share in done.top1.items():
            typer.echo(f"top-1, {name}: {share.value:.2%} [{share.low:.2%}, {share.high:.2%}] of {share.n}", err=True)
    typer.echo(str(done.folder))
