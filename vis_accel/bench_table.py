"""A benchmark's rows on a terminal: fixed columns, a line as each row is finished, and what there is to say of it underneath."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from vis_accel.record import Quantity, Record

__all__ = ["Table"]

_WIDTHS = {"": 38, "images/s": 12, "calls": 6, "NFE": 5, "GMACs": 8, "peak MB": 8, "first call s": 12}
_WIDTH = 21  # of a value with its interval


class Table:
    """Prints rows; what columns there are, the first row decides."""

    def __init__(self) -> None:
        self.names: tuple[str, ...] = ()
        self.baselines: list[str] = []

    def row(self, record: Record) -> None:
        """Prints one row, and the head before the first."""
        if not record.recipe_form.get("methods") or record.recipe == "stock, compiled":
            self.baselines.append(record.recipe)
        cells = _pipeline(record, self.baselines) if "calls" in record.counters else _classifier(record)
        if not self.names:
            self.names = tuple(cells)
            typer.echo(_about(record))
            typer.echo(self._line(self.names))
        typer.echo(self._line(tuple(cells.get(name, "-") for name in self.names)))
        for remark in _remarks(record):
            typer.echo(f"{'':4}{remark}")

    def _line(self, cells: tuple[str, ...]) -> str:
        return "  ".join(cell.ljust(_WIDTHS.get(name, _WIDTH)) for name, cell in zip(self.names, cells, strict=True)).rstrip()


def _about(record: Record) -> str:
    """The line above the table: what is the same in all rows."""
    if "calls" in record.counters:
        facts = [f"guidance {record.settings.get('guidance_scale')}"]
    else:
        facts = [f"{name} {value}" for name, value in record.settings.items() if value is not None and name not in ("samples", "batch")]
    return ", ".join([record.model, f"n = {record.n}", record.data, *facts])


def _pipeline(record: Record, baselines: list[str]) -> dict[str, str]:
    """The cells of a pipeline's row by the names of their columns."""
    fid = next((name for name in record.quality if name.startswith("FID") and not name.endswith("difference")), None)
    first, second = (fid, "class agreement") if any(name.startswith("FID") for name in record.quality) else ("PSNR", "SSIM")
    ratios = {} if record.speed is None else record.speed.ratios
    own, fast = ([*baselines, "", ""])[:2]
    return {
        "": record.recipe, first or "PSNR": _interval(_first(record, first or "PSNR")), second: _interval(_first(record, second)),
        "images/s": _speed(record), "x stock": _interval(ratios.get(own)), "x stock fast": _interval(ratios.get(fast)),
        "calls": _plain(record.counters.get("calls")), "NFE": _plain(record.counters.get("nfe")), "peak MB": _memory(record),
    }  # fmt: skip


def _classifier(record: Record) -> dict[str, str]:
    """The cells of a classifier's row; shares are in percent."""
    ratios = {} if record.speed is None else record.speed.ratios
    shares = {"top-1 %": "top-1", "difference, points": "top-1 difference", "agreement %": "agreement"}
    accuracy = {name: _percent(record.quality.get(key)) for name, key in shares.items()} if record.quality else {}
    compiled = {"x stock, compiled": _interval(ratios.get("stock, compiled"))} if "stock, compiled" in ratios else {}
    return {
        "": record.recipe, **accuracy, "images/s": _speed(record), "x stock": _interval(ratios.get("stock")), **compiled,
        "GMACs": _number(record.counters.get("GMACs")), "peak MB": _memory(record), "first call s": _number(record.first_call_seconds),
    }  # fmt: skip


def _remarks(record: Record) -> list[str]:
    found = list(record.notes)
    for speed in record.other_speeds:
        ratios = "".join(f", x {name} {_interval(ratio)}" for name, ratio in speed.ratios.items())
        found.append(f"batch {speed.batch}: {_number(speed.images_per_second.value)} images/s{ratios}")
    if record.verdict:
        found.append(f"quality {record.verdict}")
    if record.unstable:
        found.append(f"unstable timing: {'; '.join(record.unstable)}")
    return found


def _first(record: Record, start: str) -> Quantity | None:
    return next((value for name, value in record.quality.items() if name.startswith(start) and not name.endswith("difference")), None)


def _speed(record: Record) -> str:
    return _number(None if record.speed is None else record.speed.images_per_second.value)


def _memory(record: Record) -> str:
    return "-" if record.peak_memory_bytes is None else f"{record.peak_memory_bytes / 2**20:.0f}"


def _interval(quantity: Quantity | None) -> str:
    if quantity is None or quantity.value is None:
        return "-"
    ends = "" if quantity.low is None or quantity.high is None else f" [{quantity.low:.3g}, {quantity.high:.3g}]"
    return f"{quantity.value:.3g}{ends}"


def _percent(quantity: Quantity | None) -> str:
    if quantity is None or quantity.value is None:
        return "-"
    ends = "" if quantity.low is None or quantity.high is None else f" [{100 * quantity.low:.2f}, {100 * quantity.high:.2f}]"
    return f"{100 * quantity.value:.2f}{ends}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"
