"""The structured log: one JSON line for each request, on stderr. What visitors typed is left out unless the operator asks for it."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from datetime import datetime, timezone
from typing import Any

__all__ = ["Entry", "set_up", "unreadable"]

_LOG = logging.getLogger("vis_accel.app")
_TYPED = ("prompt", "recipe", "first", "second")


def set_up() -> None:
    """Lets lines go to stderr, once."""
    if not _LOG.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        _LOG.addHandler(handler)
        _LOG.setLevel(logging.INFO)
        _LOG.propagate = False


class Entry:
    """One request's line, written when it ends.

    Args:
        what: "generate", "compare", "classify".
        everything: whether prompts and recipes are written too.
    """

    def __init__(self, what: str, everything: bool = False) -> None:
        self.what, self.everything, self.started = what, everything, time.perf_counter()
        self.facts: dict[str, Any] = {}

    def describe(self, request: Any) -> None:
        """Takes the request's fields."""
        given: dict[str, Any] = request.model_dump()
        self.facts = {name: value for name, value in given.items() if self.everything or name not in _TYPED}

    def ended(self, how: str, error: BaseException | None = None, number: str | None = None) -> None:
        """Writes the line.

        Args:
            how: "done", "cancelled", "refused", "failed".
            error: what was raised; its text only with `everything` or for failures, whose traceback is written too.
            number: what the visitor was told.
        """
        line: dict[str, Any] = {"time": _now(), "event": self.what, "outcome": how}
        line |= {"seconds": round(time.perf_counter() - self.started, 3), **self.facts}
        if number is not None and error is not None:
            line |= {"number": number, "error": "".join(traceback.format_exception(error))}
        elif error is not None:
            line |= {"error": str(error) if self.everything else type(error).__name__}
        _LOG.info(json.dumps({name: value for name, value in line.items() if value not in (None, "", ())}))


def unreadable(path: str, error: BaseException) -> None:
    """Writes a line for a request that could not be read; its text is a stranger's, and left out."""
    _LOG.info(json.dumps({"time": _now(), "event": "request", "outcome": "unreadable", "path": path[:100], "error": type(error).__name__}))


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
