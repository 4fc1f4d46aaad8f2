"""Reading a value against an annotation: which literals an option may be, and what to call them in a message.

Only int, float, str, bool, None, Literal and tuples of them can be annotated, because only they survive text and JSON unchanged.
"""

from __future__ import annotations

import math
import types
from collections.abc import Iterator
from typing import Any, Final, Literal, Union, get_args, get_origin

from vis_accel.errors import either

MISFIT: Final = object()


def read(value: object, hint: Any) -> object:
    """`value` as `hint` wants it (lists as tuples, ints as floats where only a float fits), or `MISFIT`."""
    found = _exactly(value, hint)
    return found if found is not MISFIT or type(value) is not int else _exactly(_as_float(value), hint)


def _as_float(value: int) -> float:
    return float(value) if abs(value) < 2**53 else math.inf  # beyond, the float would be another number: refused as infinite


def _exactly(value: object, hint: Any) -> object:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return next((found for member in get_args(hint) if (found := _read_member(value, member)) is not MISFIT), MISFIT)
    if origin is Literal:
        return next((choice for choice in get_args(hint) if type(choice) is type(value) and choice == value), MISFIT)
    if origin is tuple:
        return _read_tuple(value, get_args(hint))
    if hint in (None, type(None)):
        return None if value is None else MISFIT
    if hint not in (int, float, str, bool):
        raise TypeError(f"An option is annotated {hint!r}; only int, float, str, bool, None, Literal and tuples of them can be.")
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        return MISFIT
    value = hint(value)  # a subclass (numpy's float64) would not survive repr
    return value if _survives(value) else MISFIT


def _survives(value: object) -> bool:
    """Whether text and JSON can carry the value: no infinity, no integer too long to print, no half of a character."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    return not isinstance(value, int) or abs(value) < 2**63


def _read_member(value: object, member: Any) -> object:
    # Within a union a tuple's elements may still be promoted; the value itself only when no member fits it as it is.
    return read(value, member) if get_origin(member) is tuple else _exactly(value, member)


def _read_tuple(value: object, members: tuple[Any, ...]) -> object:
    if not isinstance(value, (tuple, list)):
        return MISFIT
    if len(members) == 2 and members[1] is Ellipsis:
        members = (members[0],) * len(value)
    found = tuple(read(element, member) for element, member in zip(value, members, strict=False))
    return MISFIT if len(value) != len(members) or MISFIT in found else found


def words(hint: Any) -> str:
    """The annotation in words: `an integer or None`."""
    return either(dict.fromkeys(_kinds(hint)))


def _kinds(hint: Any) -> Iterator[str]:
    if get_origin(hint) in (Union, types.UnionType):
        for member in get_args(hint):
            yield from _kinds(member)
    elif get_origin(hint) is Literal:
        yield from map(repr, get_args(hint))
    elif get_origin(hint) is tuple:
        members = get_args(hint)
        if len(members) == 2 and members[1] is Ellipsis:
            yield f"a tuple, each element {words(members[0])}"
        else:
            yield f"a tuple ({', '.join(map(words, members))})"
    else:
        yield {int: "an integer", float: "a finite number", str: "a text", bool: "True or False"}.get(hint, "None")
