"""`vis-accel generate`: images of one recipe, a PNG each, named by their seeds."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vis_accel.files import write_atomic

if TYPE_CHECKING:
    from vis_accel.generation import Job

__all__ = ["run"]


def run(
    *,
    model: str,
    recipe: str | None,
    count: int,
    job: Job,
    batch: int,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    output: Path,
    format: str,
    allow_pickle: bool,
) -> None:
    """Loads, applies, generates, writes; a batch is on the disk before the next one starts."""
    from contextlib import nullcontext

    from vis_accel.recipe import Recipe

    parsed = None if recipe is None else Recipe.parse(recipe)  # before anything heavy is loaded
    from vis_accel.errors import UsageError
    from vis_accel.zoo.quantized import is_quantized, opened_as

    if is_quantized(model):
        if parsed is not None:
            raise UsageError(f"{model} has a recipe of its own: {opened_as(model)[1]}.", hint="leave out --recipe")
        model, parsed = opened_as(model)
    from vis_accel.apply import accelerate
    from vis_accel.generation import generate
    from vis_accel.zoo.opened import Placement, open_pipeline

    opened = open_pipeline(model, job, Placement(device=device, dtype=dtype, threads=threads, allow_pickle=allow_pickle))
    pipeline, job = opened.pipeline, opened.job
    job.check(pipeline)
    output.mkdir(parents=True, exist_ok=True)
    paths: list[str] = []
    with accelerate(pipeline, parsed, calibration=job) if parsed is not None else nullcontext():
        started = time.perf_counter()
        for start in range(0, count, batch):
            indices = range(start, min(start + batch, count))
            for index, image in zip(indices, generate(pipeline, job, indices), strict=True):
                paths.append(str(output / f"{job.seed + index:06d}.png"))
                write_atomic(paths[-1], _png(image))
            if format in ("auto", "human"):
                typer.echo(f"{len(paths)}/{count} images, {len(paths) / (time.perf_counter() - started):.3g} images/s", err=True)
    if format == "json":
        typer.echo(json.dumps({"model": model, "recipe": recipe, "files": paths}))
    else:
        typer.echo("\n".join(paths) if format == "quiet" else f"{len(paths)} images in {output}")


def _png(image: Any) -> bytes:
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(data, "PNG")
    return data.getvalue()
