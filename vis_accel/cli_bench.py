"""`vis-accel bench`, from parsed arguments to rows printed as they finish, or a card as JSON."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vis_accel.bench_table import Table
from vis_accel.budget import parse_duration
from vis_accel.errors import UsageError

if TYPE_CHECKING:
    from vis_accel.generation import Job
    from vis_accel.recipe import Recipe
    from vis_accel.record import Card

__all__ = ["run"]

DEFAULT_OUTPUT = Path("vis-accel-bench")


def run(
    *,
    model: str,
    recipes: list[Recipe] | None,
    job: Job,
    samples: int | None,
    budget: str | None,
    reference: str | None,
    batch: int | None,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    output: Path | None,
    format: str,
    resume: bool,
    dry_run: bool,
    allow_pickle: bool,
    data: Path | None = None,
    timing_batch: Sequence[int] = (),
    size: int | None = None,
    random_weights: bool = False,
    skip_broken: bool = False,
    calibration: Path | None = None,
) -> None:
    """Checks the numbers, runs the benchmark, prints.

    Raises:
        UsageError: before anything heavy is loaded, for numbers that make no sense.
    """
    if samples is not None and samples < 2:
        raise UsageError(f"--samples is the number of images a row and must be at least 2; got {samples}.")
    for option, count in (("--batch", batch), *(("--timing-batch", count) for count in timing_batch)):
        if count is not None and count < 1:
            raise UsageError(f"{option} is the number of images a call and must be at least 1; got {count}.")
    if size is not None and size < 1:
        raise UsageError(f"--size is the height and width of the images in pixels and must be at least 1; got {size}.")
    seconds = None if budget is None else parse_duration(budget)
    loud = format != "quiet"
    if loud:
        typer.echo("loading", err=True)
    from vis_accel.benchmark import Settings, Watcher, bench, preview
    from vis_accel.zoo.opened import Placement

    folder = output or DEFAULT_OUTPUT / Path(model).name
    placement = Placement(
        device=device, dtype=dtype, threads=threads, allow_pickle=allow_pickle, random_weights=random_weights, size=size
    )  # fmt: skip
    first, *more = timing_batch or (Settings.timing_batch,)
    settings = Settings(
        samples=samples, budget=seconds, batch=batch, timing_batch=first, more_timing_batches=tuple(more), reference=reference, data=data,
        calibration=calibration, skip_broken=skip_broken, output=folder, resume=resume, placement=placement,
    )  # fmt: skip
    if dry_run:
        typer.echo("\n".join(preview(model, recipes, job=job, placement=placement, settings=settings)))
        return
    table = Table()
    row = table.row if format in ("auto", "human") else Watcher.row
    watcher = Watcher(say=_say, row=row, progress=_Progress()) if loud else Watcher()
    card = bench(model, recipes, job=job, settings=settings, watcher=watcher)
    if format == "json":
        typer.echo(card.to_json(), nl=False)
    elif format == "quiet":
        typer.echo(str(folder / "card.json"))
    else:
        typer.echo(_closing(card, folder))


def _say(line: str) -> None:
    typer.echo(line, err=True)


class _Progress:
    """Counts batches on one line of a terminal; says nothing elsewhere."""

    def __call__(self, label: str, done: int, total: int) -> None:
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            sys.stderr.write(f"\r\x1b[K{label}: {done}/{total} batches{end}")
            sys.stderr.flush()


def _closing(card: Card, folder: Path) -> str:
    from vis_accel.record import quality_axis, undominated

    axis = quality_axis(card.rows)
    best = [row.recipe for row in undominated(card.rows)]
    marked = f"no other row is both faster and better ({axis}): {'; '.join(best)}\n" if axis else ""
    floor = card.reference.get("floor")
    note = f"floor: {floor:.4g} is what {card.baseline.n} real images score\n" if isinstance(floor, float) else ""
    return f"{note}{marked}card: {folder / 'card.md'}, {folder / 'card.json'}, {folder / 'card.png'}"
