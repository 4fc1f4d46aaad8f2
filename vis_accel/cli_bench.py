"""`vis-accel bench`, from parsed arguments to rows printed as they finish, or a card as JSON."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from vis_accel.budget import parse_duration
from vis_accel.errors import UsageError

if TYPE_CHECKING:
    from vis_accel.generation import Job
    from vis_accel.recipe import Recipe
    from vis_accel.record import Card, Quantity, Record

__all__ = ["run"]

DEFAULT_OUTPUT = Path("vis-accel-bench")


def run(
    *,
    model: str,
    recipes: list[Recipe],
    job: Job,
    samples: int | None,
    budget: str | None,
    reference: str | None,
    batch: int,
    device: str | None,
    dtype: str | None,
    threads: int | None,
    output: Path | None,
    format: str,
    resume: bool,
    dry_run: bool,
    allow_pickle: bool,
) -> None:
    """Checks the numbers, runs the benchmark, prints.

    Raises:
        UsageError: before anything heavy is loaded, for numbers that make no sense.
    """
    if samples is not None and samples < 2:
        raise UsageError(f"--samples is the number of images a row and must be at least 2; got {samples}.")
    if batch < 1:
        raise UsageError(f"--batch is the number of images a call and must be at least 1; got {batch}.")
    seconds = None if budget is None else parse_duration(budget)
    loud = format != "quiet"
    if loud:
        typer.echo("loading", err=True)
    from vis_accel.benchmark import Settings, Watcher, bench, preview
    from vis_accel.zoo.opened import Placement

    folder = output or DEFAULT_OUTPUT / Path(model).name
    placement = Placement(device=device, dtype=dtype, threads=threads, allow_pickle=allow_pickle)
    if dry_run:
        typer.echo("\n".join(preview(model, recipes, job=job, placement=placement)))
        return
    settings = Settings(
        samples=samples, budget=seconds, batch=batch, reference=reference, output=folder, resume=resume, placement=placement
    )
    table = _Table(human=format in ("auto", "human"))
    watcher = Watcher(say=_say, row=table.row, progress=_Progress()) if loud else Watcher()
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


class _Table:
    """Rows in fixed columns, each printed when it is finished."""

    _WIDTHS = (38, 21, 21, 12, 17, 17, 6, 5, 8)

    def __init__(self, *, human: bool) -> None:
        self.human = human
        self.started = False
        self.baselines: list[str] = []

    def row(self, record: Record) -> None:
        if not self.human:
            return
        if not self.started:
            self._head(record)
        cells = (
            record.recipe, *(_interval(_first(record, start)) for start in self._names), _number(_speed(record)),
            *self._ratios(record), _plain(record.counters.get("calls")), _plain(record.counters.get("nfe")),
            "-" if record.peak_memory_bytes is None else f"{record.peak_memory_bytes / 2**20:.0f}",
        )  # fmt: skip
        typer.echo(self._line(cells))
        if record.verdict:
            typer.echo(f"{'':4}quality {record.verdict}")
        if record.unstable:
            typer.echo(f"{'':4}unstable timing: {'; '.join(record.unstable)}")

    def _head(self, record: Record) -> None:
        self.started = True
        self._names = ("FID", "class agreement") if any(name.startswith("FID") for name in record.quality) else ("PSNR", "SSIM")
        shown = next((name for name in record.quality if name.startswith(self._names[0])), self._names[0])
        head = ("", shown, self._names[1], "images/s", "x stock", "x stock fast", "calls", "NFE", "peak MB")
        typer.echo(f"{record.model}, n = {record.n}, {record.data}" + f", guidance {record.settings.get('guidance_scale')}")
        typer.echo(self._line(head))

    def _ratios(self, record: Record) -> tuple[str, str]:
        """The speed-ups over both baselines, by the order of the rows: the first two rows are the baselines."""
        found = {} if record.speed is None else record.speed.ratios
        if not record.recipe_form.get("methods"):
            self.baselines.append(record.recipe)
        first, second = ([*self.baselines, "", ""])[:2]
        return _interval(found.get(first)), _interval(found.get(second))

    def _line(self, cells: tuple[str, ...]) -> str:
        return "  ".join(cell.ljust(width) for cell, width in zip(cells, self._WIDTHS, strict=True)).rstrip()


def _closing(card: Card, folder: Path) -> str:
    from vis_accel.record import quality_axis, undominated

    axis = quality_axis(card.rows)
    best = [row.recipe for row in undominated(card.rows)]
    marked = f"no other row is both faster and better ({axis}): {'; '.join(best)}\n" if axis else ""
    floor = card.reference.get("floor")
    note = f"floor: {floor:.4g} is what {card.baseline.n} real images score\n" if isinstance(floor, float) else ""
    return f"{note}{marked}card: {folder / 'card.md'}, {folder / 'card.json'}, {folder / 'card.png'}"


def _first(record: Record, start: str) -> Quantity | None:
    return next((value for name, value in record.quality.items() if name.startswith(start) and not name.endswith("difference")), None)


def _speed(record: Record) -> float | None:
    return None if record.speed is None else record.speed.images_per_second.value


def _interval(quantity: Quantity | None) -> str:
    if quantity is None or quantity.value is None:
        return "-"
    ends = "" if quantity.low is None or quantity.high is None else f" [{quantity.low:.3g}, {quantity.high:.3g}]"
    return f"{quantity.value:.3g}{ends}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
