"""`vis-accel quantize`, from parsed arguments to a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["quantize"]


def quantize(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    recipe: Annotated[str, typer.Option("--recipe", help="With int8 or q-diffusion: 'dpm(steps=10) + q-diffusion(weights=4)'.")],
    model: Annotated[str, typer.Option("--model", "-m", help="Bundled model, hub id, or a folder.")] = "cifar10-dit",
    calibration: Annotated[
        Path | None, typer.Option("--calibration", help="For classifiers: folder of images. Default: what ships.")
    ] = None,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="For models that take text; may be repeated.")] = None,
    class_labels: Annotated[str | None, typer.Option("--class-labels", help="Comma-separated numbers.")] = None,
    guidance_scale: Annotated[float | None, typer.Option("--guidance-scale", help="Default: what the model's card pins.")] = None,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None,
    allow_pickle: Annotated[bool, typer.Option("--allow-pickle", help="Load weights that can run code.")] = False,
) -> None:
    """Round a model once, calibrated on the recipe's own run, into a folder that load, bench and generate open."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from vis_accel.errors import UsageError
    from vis_accel.generation import Job
    from vis_accel.quantizing import quantize as run
    from vis_accel.zoo.opened import Placement

    try:
        labels = tuple(int(part) for part in class_labels.split(",")) if class_labels else ()
    except ValueError as error:
        raise UsageError(f"--class-labels takes numbers with commas between them; got {class_labels!r}.") from error
    job = Job(class_labels=labels, prompts=tuple(prompt or ()), guidance_scale=guidance_scale)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks = dict[str, int]()

        def progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)  # type: ignore[arg-type]

        placement = Placement(threads=threads, allow_pickle=allow_pickle)
        told = run(model, recipe, output, job=job, calibration=calibration, placement=placement, progress=progress)
    typer.echo(told)
    typer.echo(str(output))
