"""How a benchmark is run, who listens to it, and the folder it writes to: the same for pipelines and classifiers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from vis_accel.files import write_atomic
from vis_accel.record import Record
from vis_accel.rows import now
from vis_accel.zoo.opened import Placement

__all__ = ["BUDGET", "ROWS", "TIMING_MOST", "TIMING_SHARE", "Settings", "Watcher", "set_aside", "try_to_write"]

BUDGET = 300.0  # seconds, where none is given
TIMING_SHARE = 0.14  # of the budget, for the timing of one row or two; more rows share twice as much
TIMING_MOST = 60.0  # seconds a row, however large the budget
ROWS = "rows.jsonl"  # the journal, in the output folder


@dataclass(frozen=True)
class Settings:
    """How a benchmark is run, apart from what is measured.

    Attributes:
        samples: images a row; None: as many as the budget allows.
        budget: seconds for everything; None: 300, and `samples` may take up to an hour.
        batch: images a call, in the quality runs; None: 50 for pipelines, `timing_batch` for classifiers.
        timing_batch: images a call, in the timing.
        more_timing_batches: further batch sizes that classifiers are timed at.
        reference: for pipelines: a folder of real images or a file that `vis-accel reference` wrote; None: the bundled model's own, if any.
        data: for classifiers: a folder with test/CLASS/*, val/CLASS/* or CLASS/*; None: the bundled model's own images, if any.
        calibration: for classifiers: a folder of the same form, of other images, that methods which look at a run (int8) run on; None: what
            ships with the model, if anything.
        skip_broken: leave out images of `data` that do not open, and say how many.
        output: folder for card.json, card.md, card.png and the rows; None: nothing is written.
        resume: go on from the rows in `output`.
        placement: device, dtype, threads of a model that is given by name.
    """

    samples: int | None = None
    budget: float | None = None
    batch: int | None = None
    timing_batch: int = 16
    more_timing_batches: tuple[int, ...] = ()
    reference: str | None = None
    data: Path | None = None
    calibration: Path | None = None
    skip_broken: bool = False
    output: Path | None = None
    resume: bool = False
    placement: Placement = field(default_factory=Placement)

    def timing_seconds(self, recipes: int) -> float:
        """For the timing of each of that many rows."""
        return min(TIMING_MOST, TIMING_SHARE * (self.budget or BUDGET) / max(1, recipes / 2))


@dataclass
class Watcher:
    """Who wants to know: each is called in the first process only."""

    say: Callable[[str], None] = lambda line: None
    row: Callable[[Record], None] = lambda record: None
    progress: Callable[[str, int, int], None] = lambda label, done, total: None


def try_to_write(folder: Path) -> None:
    """Finds out before the first image whether the folder takes files.

    Raises:
        OutputError: it does not.
    """
    path = folder / "writable"
    write_atomic(path, "")
    path.unlink(missing_ok=True)


def set_aside(path: Path) -> None:
    """Keeps the rows of an earlier run under another name, so that a new one starts empty and nothing is lost."""
    if path.exists():
        stamp = now().replace(":", "").replace("+0000", "")
        path.rename(path.with_name(f"{path.stem}.{stamp}{path.suffix}"))
