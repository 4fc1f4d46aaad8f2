"""`vis-accel schedule`: knots searched for one model, printed as a recipe."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vis_accel.errors import OutputError

if TYPE_CHECKING:
    from vis_accel.generation import Job
    from vis_accel.schedule_search import Found

__all__ = ["run"]


def run(
    *,
    model: str,
    sampler: str,
    calls: int,
    images: int,
    job: Job,
    device: str | None,
    threads: int | None,
    output: Path | None,
    format: str,
) -> None:
    """Searches, reports progress on stderr, prints the recipe on stdout."""
    from vis_accel.schedule_search import search

    quiet = format in ("json", "quiet")
    found = search(
        model, sampler, calls, images=images, job=job, device=device, threads=threads,
        progress=(lambda line: None) if quiet else (lambda line: typer.echo(line, err=True)),
    )  # fmt: skip
    if output is not None:
        found.save(output)
    if format == "json":
        typer.echo(json.dumps(asdict(found)))
        return _keep(found, quiet)
    if not quiet:
        best = found.tried[0]
        typer.echo(f"nearest to the teacher: {best.name}, root mean square distance {best.error:.4f}", err=True)
        if not best.name.startswith("searched"):
            typer.echo(f"the search found nothing better than the fixed schedule {best.name!r}", err=True)
    typer.echo(found.recipe)
    _keep(found, quiet)


def _keep(found: Found, quiet: bool) -> None:
    """Keeps the knots for `schedule='searched'`; where that fails, the recipe is printed already."""
    from vis_accel.samplers.stored import keep

    try:
        kept = keep(found.stored())
    except (OSError, RuntimeError, OutputError) as error:
        typer.echo(f"the knots could not be kept for schedule='searched': {error}", err=True)
        return
    if not quiet:
        typer.echo(f"kept in {kept}: on this model {found.short()} now means these knots", err=True)
