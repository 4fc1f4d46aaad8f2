"""`vis-accel schedule --recipe`: how many tokens to merge in which block of one model, printed as a recipe."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import typer

from vis_accel.errors import OutputError

__all__ = ["run"]


def run(*, model: str, recipe: str, data: Path, images: int, by: str, threads: int | None, output: Path | None, format: str) -> None:
    """Searches, reports progress on stderr, prints the recipe on stdout, and keeps the schedule for shape='searched'."""
    from vis_accel.token_pruning.stored import keep
    from vis_accel.token_search import search_tokens

    quiet = format in ("json", "quiet")

    def say(line: str) -> None:
        if not quiet:
            typer.echo(line, err=True)

    found = search_tokens(model, recipe, data=data, images=images, by=by, threads=threads, progress=say)
    if output is not None:
        found.save(output)
    best = found.tried[0]
    if not best.name.startswith(("searched", "dynamic")):
        say(f"the search found nothing better than the {best.name} schedule of the same work")
    typer.echo(json.dumps(asdict(found)) if format == "json" else found.recipe)
    try:
        kept = keep(found.stored())
    except (OSError, RuntimeError, OutputError) as error:
        typer.echo(f"the schedule could not be kept for shape='searched': {error}", err=True)
        return
    say(f"kept in {kept}: on this model {found.short()} now means this schedule")
