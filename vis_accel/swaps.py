"""Changing one attribute or one item, and the exact way back: each `set_` function makes the change and returns its undo."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class Change:
    """A change that can be made and taken back in turn; `undo` is None while it is not in place."""

    def __init__(self, do: Callable[[], Callable[[], object]]) -> None:
        self.do = do
        self.undo: Callable[[], object] | None = do()

    def forward(self) -> None:
        if self.undo is None:
            self.undo = self.do()

    def back(self) -> None:
        undo, self.undo = self.undo, None
        if undo is not None:
            undo()


def run_all(actions: Iterable[Callable[[], object]]) -> None:
    """Runs all actions, whatever they raise, then raises the first error."""
    first: BaseException | None = None
    for action in actions:
        try:
            action()
        except BaseException as error:  # KeyboardInterrupt too: half an undo is worse than a late interrupt
            first = first or error
    if first is not None:
        raise first


def set_attribute(obj: Any, name: str, value: Any) -> Callable[[], object]:
    """Sets `obj.name = value` by assignment; the undo assigns the old value, or deletes what the object itself did not have."""
    home = _home(obj, name)
    assigned = home is not None or hasattr(inspect.getattr_static(type(obj), name, None), "__set__")
    old = getattr(obj, name) if assigned else None
    setattr(obj, name, value)

    def undo() -> None:
        if not assigned:
            delattr(obj, name)
        elif home is None or _home(obj, name) is home:
            setattr(obj, name, old)  # by assignment: a pipeline keeps its config in step that way
        else:  # a PyTorch module moved the name to another table
            delattr(obj, name)
            home[name] = old

    return undo


def set_item(mapping: Any, key: Any, value: Any) -> Callable[[], object]:
    """Sets `mapping[key] = value`, of a mapping or a mutable sequence; the undo deletes a key that did not exist."""
    absent = key not in mapping if isinstance(mapping, Mapping) else False
    old = None if absent else mapping[key]
    mapping[key] = value

    def undo() -> None:
        if absent:
            del mapping[key]
        else:
            mapping[key] = old

    return undo


def _home(obj: Any, name: str) -> Any:
    """The dict that holds the attribute of the object itself: its `__dict__` or one of a PyTorch module's three tables; else None."""
    own: Mapping[str, Any] = getattr(obj, "__dict__", {})
    tables = (own, *(own.get(table) for table in ("_modules", "_parameters", "_buffers")))
    return next((table for table in tables if isinstance(table, Mapping) and name in table), None)
