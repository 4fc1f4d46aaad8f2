"""Schedules of merging that were searched for one model, kept by its hash: what `shape="searched"` stands for.

`vis-accel schedule --model MODEL --recipe "tome(r=7)"` writes them to the user's folder (`files.user_folder`); those of the bundled models
come with the package. A file that is broken, or of another model, method or r, is never used.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from vis_accel.addons import identity
from vis_accel.errors import DataError, NotApplicableError
from vis_accel.files import user_folder, write_atomic
from vis_accel.strict_json import dumps, loads, read_form, to_form

__all__ = ["SHIPPED", "Stored", "find", "keep"]

SHIPPED = Path(__file__).parent / "schedules"


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One search.

    Attributes:
        model: hash of the weights.
        method: its name.
        budget: the constant r whose work the schedule does.
        r: tokens merged in each block.
        made: in words, what it was searched with.
    """

    model: str
    method: str
    budget: int
    r: tuple[int, ...]
    made: str = ""


def keep(found: Stored, folder: Path | None = None) -> Path:
    """Writes a search, over an earlier one of the same; returns the file."""
    path = _place(folder or user_folder() / "tokens", found.model, found.method, found.budget)
    write_atomic(path, dumps(to_form(found, "the search"), indent=1) + "\n")
    return path


def find(model: nn.Module, method: str, budget: int) -> tuple[int, ...]:
    """The schedule kept for this model; the user's own before those that ship.

    Raises:
        NotApplicableError: there is none, with the command that searches it.
        DataError: a file that holds something else than its name says.
    """
    own = identity(model)
    for folder in (user_folder() / "tokens", SHIPPED):
        path = _place(folder, own, method, budget)
        if path.is_file():
            found: Stored = read_form(Stored, loads(path.read_text(encoding="utf-8"), str(path), DataError), str(path), DataError)
            if (found.model, found.method, found.budget) != (own, method, budget) or min(found.r, default=-1) < 0:
                raise DataError(f"{path} holds another schedule than its name says.", hint="delete it, and search again")
            return found.r
    raise NotApplicableError(
        f"No schedule was searched for {method}(r={budget}) on this {type(model).__name__}.",
        hint=f"vis-accel schedule --model MODEL --recipe '{method}(r={budget})' --data DIR",
    )


def _place(folder: Path, model: str, method: str, budget: int) -> Path:
    key = hashlib.sha256(f"{model} {method} {budget}".encode()).hexdigest()
    return folder / f"{method}-{budget}-{key[:16]}.json"
