"""`distill`: from options to a folder with the student, its curve and its picture.

Order    what is quick to refuse comes first: options, the folder, the teacher; then the teacher's paths are sampled; then it trains.
Output   pipeline/ (stock diffusers), addon.safetensors, grid.png, README.md, curve.png, history.json, options.json, pool.safetensors,
         checkpoint.safetensors; of lcm-lora adapter/ too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vis_accel import training
from vis_accel.checkpoint import read_checkpoint
from vis_accel.distillation.consistency import grid_times
from vis_accel.errors import RunError, UsageError
from vis_accel.files import write_atomic
from vis_accel.students import pool, prompts
from vis_accel.students.options import DistillOptions
from vis_accel.students.task import StudentTask
from vis_accel.students.teacher import Teacher, open_teacher
from vis_accel.students.train_consistency import ConsistencyTask, knots
from vis_accel.students.train_guidance import GuidanceTask
from vis_accel.students.train_lora import LoraTask, targets
from vis_accel.students.train_progressive import ProgressiveTask, Stage, stages
from vis_accel.students.train_reflow import ReflowTask
from vis_accel.students.train_segments import SegmentsTask, stops

__all__ = ["Distilled", "distill"]

_OPTIONS, _POOL = "options.json", "pool.safetensors"
_HELD_OUT, _HELD_OUT_SEED = 256, 10**9
_TASKS: dict[str, Callable[[DistillOptions, Teacher, pool.Pool, pool.Pool], StudentTask]] = {
    "consistency": ConsistencyTask,
    "lcm-lora": LoraTask,
    "guidance": GuidanceTask,
    "segments": SegmentsTask,
    "reflow": ReflowTask,
}


@dataclass(frozen=True)
class Distilled:
    """How a distillation ended.

    Attributes:
        folder: holds the student: `pipeline` below it loads in stock diffusers.
        scores: of the last evaluation.
        seconds: of training.
    """

    folder: Path
    scores: dict[str, float]
    seconds: float


def distill(options: DistillOptions, *, report: Callable[[str], None] = lambda line: None) -> Distilled:
    """Distils a pipeline into a few-step student; alone or as one of the processes that `accelerate launch` started.

    Args:
        options: what is wanted.
        report: receives lines of progress, in the first process only.

    Raises:
        UsageError: options that do not fit the model, an output folder that holds another run.
        NotApplicableError: a pipeline that cannot be a teacher: a flow model, a text-to-image pipeline.
        DataError: images that are missing or broken.
        RunError: the loss is not finite any more.
        OutputError: no space for the checkpoint.
    """
    first = int(os.environ.get("RANK", "0")) == 0
    say = report if first else (lambda line: None)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.resume and (options.output / training.HISTORY).exists():
        raise UsageError(f"{options.output} is finished: there is nothing to resume.", hint="give another --output to train again")
    _record(options, first)
    teacher = _teacher(options)
    parts = stages(options, teacher.noise.prediction) if options.method in ("progressive", "cfg-aware") else ()
    if options.method == "lcm-lora":
        targets(options, teacher)
    examples, held_out = _pools(options, teacher, first, say)
    if options.batch > len(examples):
        raise UsageError(f"--batch {options.batch} is more than the {len(examples)} examples.", hint=f"--samples {options.batch}")
    if parts:
        result = _halve(options, teacher, examples, held_out, parts, say)
    else:
        task = _TASKS[options.method](options, teacher, examples, held_out)
        result = training.train(task, _config(options), output=options.output, resume=options.resume, report=say)
    return Distilled(options.output, result.scores, result.seconds)


def _halve(
    options: DistillOptions, base: Teacher, examples: pool.Pool, held_out: pool.Pool, parts: tuple[Stage, ...], say: Callable[[str], None]
) -> training.TrainingResult:
    """Trains the students of a progressive distillation one after the other, each in a folder of its own but the last."""
    teacher = base
    for number, stage in enumerate(parts[:-1], start=1):
        task = ProgressiveTask(options, base, examples, held_out, teacher=teacher, stage=stage)
        folder = options.output / f"stage-{number}"
        if not (options.resume and (folder / training.HISTORY).exists()):
            say(f"stage {number} of {len(parts)}: {stage.steps} steps" + ("" if stage.halves else ", noise to v"))
            training.train(task, _config(options), output=folder, resume=options.resume, report=say)
        teacher = task.graduated(read_checkpoint(folder / training.CHECKPOINT)[1].tensors)
    say(f"stage {len(parts)} of {len(parts)}: {parts[-1].steps} steps")
    task = ProgressiveTask(options, base, examples, held_out, teacher=teacher, stage=parts[-1])
    return training.train(task, _config(options), output=options.output, resume=options.resume, report=say)


def _teacher(options: DistillOptions) -> Teacher:
    from vis_accel.zoo import bundled, load

    guidance = options.guidance
    if guidance is None and options.model in bundled.MODELS:
        guidance = bundled.describe(options.model).job.get("guidance_scale")
    pipeline = load(options.model)
    if not hasattr(pipeline, "scheduler"):
        raise UsageError(f"{options.model} is no diffusion pipeline: it has no steps to save.")
    return open_teacher(pipeline, guidance, prompts.read(options.prompts))


def _pools(options: DistillOptions, teacher: Teacher, first: bool, say: Callable[[str], None]) -> tuple[pool.Pool, pool.Pool]:
    """What is noised, and the paths that scores are taken from."""
    from accelerate import PartialState

    from vis_accel.addons import identity

    sigmas, through = _levels(options, teacher), stops(options, teacher)

    def paths(count: int, seed: int) -> pool.Pool:
        return pool.sampled(teacher, count, sampler=options.sampler, place=len(sigmas) - 1, through=through, seed=seed, report=say)

    def make() -> pool.Pool:
        pure = paths(options.samples, options.seed * 10**6)
        if len(sigmas) < 3:
            return pure
        return pure.joined(pool.again(teacher, pure, sigmas, sampler=options.sampler, seed=options.seed, report=say))

    held_out = paths(_HELD_OUT, _HELD_OUT_SEED)
    if options.data is not None:
        return pool.of_images(teacher, options.data), held_out
    facts: dict[str, Any] = {
        "model": identity(teacher.network),
        "guidance": teacher.guidance,
        "count": options.samples,
        "sampler": options.sampler,
    }
    facts |= {"seed": options.seed, "sigmas": sigmas.tolist()} | ({"through": through} if through else {})
    if teacher.prompts:
        facts["prompts"] = teacher.prompts
    with PartialState().main_process_first():  # the others read what the first wrote
        return pool.kept(options.output / _POOL, facts, make), held_out


def _levels(options: DistillOptions, teacher: Teacher) -> torch.Tensor:
    """Noise levels of the knots a student is trained at, rising; where it knows all of them, the highest alone."""
    if options.method not in ("consistency", "lcm-lora"):
        return torch.tensor([teacher.noise.sigma_max])
    return teacher.sigmas(torch.tensor(grid_times(knots(options), teacher.noise.times)))


def _config(options: DistillOptions) -> training.TrainingConfig:
    return training.TrainingConfig(
        steps=options.steps, batch_size=options.batch, learning_rate=options.learning_rate, warmup=0.03, decay=0.4,
        ema_decay=options.ema_decay, mixed_precision=options.precision, compile=options.compile, seed=options.seed,
        evaluate_every=options.steps // options.evaluations if options.evaluations else 0,
    )  # fmt: skip


def _record(options: DistillOptions, first: bool) -> None:
    """Writes the options at the start; at a resumption, holds them against those the run began with."""
    path = options.output / _OPTIONS
    wanted: dict[str, Any] = json.loads(json.dumps(options.recorded()))
    if options.resume and path.exists():
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"Cannot read {path}: {error}") from error
        different = [f"{key}: {found.get(key)} there, {value} here" for key, value in wanted.items() if found.get(key) != value]
        if different:
            message = f"The run in {options.output} was begun with other options ({'; '.join(different)})."
            raise UsageError(message, hint="use the same options, or another --output")
        return
    started = options.output / training.CHECKPOINT
    if started.exists() and not options.resume:
        raise UsageError(f"{started} exists already.", hint="add --resume to go on from it, or give another --output")
    if first:
        write_atomic(path, json.dumps(wanted, indent=1) + "\n")
