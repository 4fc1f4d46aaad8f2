"""Every failure a user can cause or meet, in one tree.

    VisAccelError
    ├── UsageError              exit 2: what was asked for is not allowed
    │   ├── UnknownNameError        a method, option, model or sampler nobody offers
    │   ├── RecipeError             a recipe text or JSON that does not parse
    │   ├── ConflictError           two methods of one recipe that cannot live together
    │   └── NotApplicableError      a method on a target it does not fit
    └── RunError                exit 1: the request was fine, the run was not
        ├── ModelError              weights or a model folder that are broken, incomplete or unsafe
        ├── DataError               images or reference statistics that are missing or broken
        ├── OutputError             a file that could not be written
        ├── NoEffectError           a method that changed nothing
        └── MissingDependencyError  an optional package that is not installed

Each error says what was given and what is allowed; its `hint`, if any, says what to type.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class VisAccelError(Exception):
    """Base of all errors this package raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n\nhint: {self.hint}" if self.hint else self.message


class UsageError(VisAccelError, ValueError):
    """What was asked for is not allowed."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(UsageError):
    """A name nobody offers."""

    @classmethod
    def of(cls, kind: str, name: str, allowed: Iterable[str]) -> UnknownNameError:
        """Builds the error for `name`, with the closest of `allowed` or, failing that, all of them.

        Args:
            kind: what the name should have been, in words: "method", "option of dpm", "schedule".
            name: what was typed.
            allowed: every name that would have been accepted.
        """
        names = sorted(allowed)
        near = closest(name, names)
        hint = f"did you mean {either(near)}?" if near else f"allowed: {', '.join(names) or 'none'}"
        return cls(f"There is no {kind} named {shown(name)}.", hint=hint)


class RecipeError(UsageError):
    """A recipe text or JSON that does not parse."""


class ConflictError(UsageError):
    """Two methods of one recipe that cannot live together."""


class NotApplicableError(UsageError):
    """A method on a target it does not fit."""


class RunError(VisAccelError, RuntimeError):
    """The request was fine, the run was not."""


class ModelError(RunError):
    """Weights or a model folder that are broken, incomplete or unsafe."""


class DataError(RunError):
    """Images or reference statistics that are missing or broken."""


class OutputError(RunError):
    """A file that could not be written."""


class NoEffectError(RunError):
    """A method that changed nothing: no layer matched, no call was saved."""


class MissingDependencyError(RunError):
    """An optional package that is not installed."""


def closest(name: str, allowed: Iterable[str], n: int = 3) -> list[str]:
    """The up to `n` names of `allowed` nearest to `name`, best first; empty if none is near."""
    return difflib.get_close_matches(name.lower()[:80], list(allowed), n=n, cutoff=0.5)


def either(names: Iterable[str]) -> str:
    """`a`, `a or b`, `a, b or c`."""
    words = list(names)
    return f"{', '.join(words[:-1])} or {words[-1]}" if len(words) > 1 else "".join(words)


def shown(value: object, limit: int = 60) -> str:
    """`repr(value)` for a message: control characters escaped, cut in the middle when longer than `limit` characters."""
    try:
        text = repr(value[: 2 * limit] + value[-limit:] if isinstance(value, str) and len(value) > 3 * limit else value)
    except (ValueError, RecursionError):  # an integer of more digits than Python prints, a list that nests too deep
        text = f"<a huge {type(value).__name__}>"
    half = (limit - 3) // 2
    return text if len(text) <= limit else f"{text[:half]}...{text[-half:]}"
