"""Knots that were searched for one network, kept by its hash: what `schedule="searched"` stands for.

A file holds one search: the network's hash, the sampler with its options, the number of steps, the knots. `vis-accel schedule` writes it to
the user's folder ($VIS_ACCEL_CACHE, else vis-accel in the user's cache); those of the bundled models come with the package. A file that is
broken, or of other weights, another sampler or another number of steps, is never used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vis_accel.errors import DataError, NotApplicableError, UsageError
from vis_accel.files import user_folder, write_atomic
from vis_accel.samplers import schedules
from vis_accel.strict_json import dumps, loads, read_form, to_form

if TYPE_CHECKING:
    from vis_accel.samplers.solver import Solver

__all__ = ["SHIPPED", "Stored", "find", "keep", "place"]

SHIPPED = Path(__file__).parent / "knots"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One search.

    Attributes:
        network: hash of the denoiser's weights.
        solver: the sampler without steps and schedule, as a recipe's text.
        steps: of a run.
        knots: what was found, falling, the last 0.
        made: in words, what it was searched with.
    """

    network: str
    solver: str
    steps: int
    knots: tuple[float, ...]
    made: str = ""


def place(folder: Path, network: str, solver: str, steps: int) -> Path:
    """The file of such a search within `folder`."""
    key = hashlib.sha256(f"{network} {solver} {steps}".encode()).hexdigest()
    return folder / "schedules" / f"{solver.partition('(')[0]}-{steps}-{key[:16]}.json"


def keep(found: Stored, folder: Path | None = None) -> Path:
    """Writes a search, over an earlier one of the same; returns the file."""
    path = place(folder or user_folder(), found.network, found.solver, found.steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dumps(to_form(found, "the search"), indent=1) + "\n")
    return path


def find(solver: Solver, network: str) -> tuple[float, ...]:
    """The knots kept for this solver, with its steps, on this network; the user's own before those that ship.

    Raises:
        UsageError: a solver without steps.
        NotApplicableError: there are none, with the command that searches them.
        DataError: a file that holds something else than its name says.
    """
    if solver.steps is None:
        raise UsageError(
            f"{solver}: searched knots belong to a number of steps, and the recipe gives none.",
            hint=f"{solver.name}(steps=6, schedule='searched')",
        )
    plain = solver.plain()
    for folder in (user_folder(), SHIPPED):
        path = place(folder, network, plain, solver.steps)
        if path.is_file():
            return _read(path, network, plain, solver.steps)
    raise NotApplicableError(
        f"No knots were searched for {plain} with {solver.steps} steps on this network.",
        hint=f"vis-accel schedule --model MODEL --sampler {plain!r} --calls {solver.steps}",
    )


def _read(path: Path, network: str, solver: str, steps: int) -> tuple[float, ...]:
    found: Stored = read_form(Stored, loads(path.read_text(encoding="utf-8"), str(path), DataError), str(path), DataError)
    if (found.network, found.solver, found.steps) != (network, solver, steps) or len(found.knots) != steps + 1:
        raise DataError(f"{path} holds other knots than its name says.", hint="delete it, and search again")
    try:
        schedules.check(found.knots)
    except UsageError as error:
        raise DataError(f"{path}: {error}", hint="delete it, and search again") from error
    return found.knots
