"""What of a method's options a page can show: a switch, a list, a number; read from the dataclass, so a new method needs nothing here."""

from __future__ import annotations

from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from vis_accel.method import Method

__all__ = ["Control", "controls", "value_of"]


class Control(NamedTuple):
    """An option that can be shown.

    Attributes:
        method, name: whose it is, and its name.
        kind: what shows it.
        default: its value when nothing is said.
        meaning: one line.
        choices: of a list.
        low, high: inclusive or exclusive bounds of a number, where it has any.
        whole: whether only whole numbers fit.
        optional: whether it may be left open.
    """

    method: str
    name: str
    kind: Literal["switch", "list", "number"]
    default: Any
    meaning: str
    choices: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    whole: bool = False
    optional: bool = False

    @property
    def label(self) -> str:
        """Its name in words."""
        return self.name.replace("_", " ").capitalize()

    def reads(self, value: Any) -> Any:
        """What a browser sends, as the option's type; whole numbers come as floats."""
        if self.kind == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return int(value) if self.whole and value == int(value) else value if self.whole else float(value)
        return value

    def shows(self, value: Any) -> Any:
        """The value for the page; None for one that cannot be shown there, such as a number for each block."""
        if self.kind == "number":
            return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
        if self.kind == "list":
            return value if value in self.choices else None
        return bool(value)


def controls(kind: type[Method]) -> list[Control]:
    """The options of a method that can be shown; names of files and lists of numbers are left to the recipe's text."""
    hints = get_type_hints(kind)
    found = (_control(kind.name, spec, hints[spec.name]) for spec in fields(kind))
    return [control for control in found if control is not None]


def value_of(control: Control, method: Method | None) -> Any:
    """The option's value in `method`, or its default."""
    return control.default if method is None else getattr(method, control.name)


def _control(method: str, spec: Any, hint: Any) -> Control | None:
    bounds, default = spec.metadata.get("bounds"), None if spec.default is MISSING else spec.default
    meaning = bounds.meaning if bounds else ""
    parts = list(get_args(hint)) if get_origin(hint) in (Union, UnionType) else [hint]
    optional = NoneType in parts
    if bool in parts:
        return Control(method, spec.name, "switch", default, meaning)
    literal = next((part for part in parts if get_origin(part) is Literal), None)
    choices = get_args(literal) if literal is not None else bounds.choices if bounds and str in parts and float not in parts else ()
    if choices:
        return Control(method, spec.name, "list", default, meaning, choices, optional=optional)
    if int in parts or float in parts:
        low, high = (None, None) if bounds is None else (_first(bounds.low, bounds.above), _first(bounds.high, bounds.below))
        whole = float not in parts
        return Control(method, spec.name, "number", default, meaning, (), low, high, whole, optional)
    return None


def _first(one: float | None, other: float | None) -> float | None:
    return other if one is None else one
