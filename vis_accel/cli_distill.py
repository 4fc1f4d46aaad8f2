"""`vis-accel distill`, from parsed arguments to a folder with the student."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["distill"]


class Kind(str, enum.Enum):
    """How the student learns."""

    consistency = "consistency"
    lcm_lora = "lcm-lora"
    guidance = "guidance"
    progressive = "progressive"
    cfg_aware = "cfg-aware"
    segments = "segments"
    reflow = "reflow"


class Step(str, enum.Enum):
    """The teacher's step."""

    ddim = "ddim"
    heun = "heun"


def distill(
    model: Annotated[str, typer.Option("--model", "-m", help="A bundled pipeline or a folder of one.")] = "cifar10-dit",
    method: Annotated[Kind, typer.Option("--method", help="How the student learns.")] = Kind.consistency,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Default: runs/MODEL-METHOD.")] = None,
    data: Annotated[Path | None, typer.Option("--data", help="Folder with train/CLASS/*. Default: samples of the teacher.")] = None,
    prompts: Annotated[Path | None, typer.Option("--prompts", help="lcm-lora: of a text-to-image pipeline, one a line.")] = None,
    samples: Annotated[int, typer.Option("--samples", help="Of the teacher, where there is no data.")] = 20_000,
    sampler: Annotated[str, typer.Option("--sampler", help="Makes them: a recipe with its steps.")] = "dpm(steps=12)",
    guidance: Annotated[float | None, typer.Option("--guidance", help="Scale the student learns. Default: the model card's.")] = None,
    low: Annotated[float, typer.Option("--low", help="guidance: the smallest scale the student takes.")] = 1.0,
    high: Annotated[float, typer.Option("--high", help="guidance: the largest.")] = 8.0,
    knots: Annotated[int | None, typer.Option("--knots", help="consistency: its noise levels. Default: 25.")] = None,
    solver: Annotated[Step | None, typer.Option("--solver", help="consistency: the teacher's step. Default: ddim on latents.")] = None,
    ends: Annotated[float | None, typer.Option("--ends", help="consistency: share that learns whole paths. Default: 0.5.")] = None,
    target_decay: Annotated[float | None, typer.Option("--target-decay", help="consistency: of the target. Default: 0.95.")] = None,
    rank: Annotated[int | None, typer.Option("--rank", help="lcm-lora: of the adapters. Default: 16.")] = None,
    targets: Annotated[str | None, typer.Option("--targets", help="lcm-lora: expression of layers. Default: of the blocks.")] = None,
    ancestral: Annotated[bool | None, typer.Option("--ancestral/--no-ancestral", help="segments: fresh noise between the steps.")] = None,
    student_steps: Annotated[
        int | None, typer.Option("--student-steps", help="progressive, segments, reflow: in the end. Default: 4.")
    ] = None,
    teacher_steps: Annotated[int | None, typer.Option("--teacher-steps", help="progressive: at first. Default: four times that.")] = None,
    guided_share: Annotated[float, typer.Option("--guided-share", help="cfg-aware: of the batches. Default: 0.5.")] = 0.0,
    dropout: Annotated[float, typer.Option("--dropout", help="Of the student, if its network has any.")] = 0.0,
    steps: Annotated[int, typer.Option("--steps", help="Optimiser steps.")] = 4000,
    batch: Annotated[int, typer.Option("--batch", help="Examples a step, over all processes.")] = 128,
    learning_rate: Annotated[float, typer.Option("--learning-rate", help="At its highest.")] = 3e-4,
    ema_decay: Annotated[float, typer.Option("--ema-decay", help="Of the averaged weights, which are kept.")] = 0.999,
    evaluations: Annotated[int, typer.Option("--evaluations", help="In the course of the run.")] = 8,
    patience: Annotated[int | None, typer.Option("--patience", help="Evaluations without a better score to stop after.")] = None,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    precision: Annotated[str, typer.Option("--precision", help="bf16 or no.")] = "bf16",
    compile: Annotated[bool, typer.Option("--compile/--no-compile", help="Compile the student's step.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", help="CPU threads.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in the output folder.")] = False,
) -> None:
    """Distil a pipeline into a student that needs a few calls, or one row where guidance needs two."""
    from vis_accel.students.options import DistillOptions

    options = DistillOptions(
        model=model, method=method.value, output=output or Path("runs") / f"{Path(model).name}-{method.value}", data=data,
        prompts=prompts, samples=samples, sampler=sampler, guidance=guidance, low=low, high=high, knots=knots,
        solver=None if solver is None else solver.value, ends=ends, target_decay=target_decay, rank=rank, targets=targets,
        ancestral=ancestral, student_steps=student_steps, teacher_steps=teacher_steps, guided_share=guided_share, dropout=dropout,
        steps=steps, batch=batch, learning_rate=learning_rate, ema_decay=ema_decay, evaluations=evaluations, patience=patience, seed=seed,
        precision=precision, compile=compile, threads=threads, resume=resume,
    )  # fmt: skip
    from vis_accel.students.run import distill as run

    done = run(options, report=lambda line: typer.echo(line, err=True))
    typer.echo(" ".join(f"{name}={value:.5g}" for name, value in done.scores.items()))
    typer.echo(str(done.folder / "pipeline"))
