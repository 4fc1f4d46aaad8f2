"""JSON without its loopholes: no NaN or infinity, no key twice, no depth or length that could hurt; every refusal is the caller's error.

`dumps` and `loads` are text <-> plain values. `to_form` and `read_form` are dataclass <-> plain values: strict both ways, since the fields'
annotations say what may stand there, and every refusal names the place ("records[2].speed.ratios").
"""

from __future__ import annotations

import json
import math
import types
from collections import Counter
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from vis_accel.errors import UsageError, VisAccelError, closest, either, shown

MAX_CHARS = 64 * 2**20  # a card of a thousand rows has about 4 MB
MAX_DEPTH = 50


T = TypeVar("T")


class _Refused(ValueError):
    """Why a well-formed JSON text is refused; never leaves this module."""


def dumps(value: object, *, indent: int | None = None, sort_keys: bool = False) -> str:
    """`value` as JSON text, keys in their order; NaN and infinity are a ValueError, since JSON has neither."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, indent=indent, sort_keys=sort_keys)


def loads(text: str, what: str, error: type[VisAccelError] = UsageError, *, limit: int = MAX_CHARS) -> Any:
    """Reads JSON text.

    Args:
        text: the JSON.
        what: names the text in messages: "the recipe's JSON".
        error: the class to raise.
        limit: longer texts are refused unread, in characters.
    """
    if not isinstance(text, str):
        raise error(f"Cannot read {what}: it must be a text; got {type(text).__name__}.")
    if len(text) > limit:
        raise error(f"Cannot read {what}: it has {len(text):,} characters; at most {limit:,} are read.")
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float)
        if _deeper(value, MAX_DEPTH):
            raise _Refused(f"it nests more than {MAX_DEPTH} deep")
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate could be read but never written again
    except RecursionError:
        raise error(f"Cannot read {what}: it nests more than {MAX_DEPTH} deep.") from None
    except json.JSONDecodeError as cause:
        raise error(f"Cannot read {what}: {cause.msg} at line {cause.lineno}, column {cause.colno}.") from None
    except UnicodeEncodeError:
        raise error(f"Cannot read {what}: it holds half a character (a lone surrogate).") from None
    except ValueError as cause:  # ours, or an integer of more digits than Python converts
        raise error(f"Cannot read {what}: {cause}.") from None
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise _Refused(f"the key {shown(twice)} occurs twice")
    return found


def _deeper(value: object, depth: int) -> bool:
    """Whether `value` nests more than `depth` deep; level by level, since a recursion is what deep nesting breaks."""
    level = [value]
    for _ in range(depth + 1):
        groups = [group.values() if isinstance(group, dict) else group for group in level if isinstance(group, (dict, list))]
        level = [element for group in groups for element in group]
    return bool(level)


def _constant(name: str) -> NoReturn:
    raise _Refused(f"{name} is not JSON; a value that is not there is null")


def _float(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"the number {shown(digits)} is too large for a float")
    return value


def to_form(value: object, where: str) -> Any:
    """`value` as plain JSON values: dataclasses as objects, tuples as lists.

    Args:
        value: dataclasses, mappings with text keys, tuples, lists, and the JSON scalars.
        where: names the value in messages: "the record".

    Raises:
        UsageError: for a NaN or infinity, or anything JSON has no form for; the message names the place.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {spec.name: to_form(getattr(value, spec.name), f"{where}.{spec.name}") for spec in fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise UsageError(f"{where} has the key {shown(key)}; keys are texts.")
        return {key: to_form(element, f"{where}.{key}") for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_form(element, f"{where}[{index}]") for index, element in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{where} is {value}; a value that is not there is None.")
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise UsageError(f"{where} is {shown(value)}, a {type(value).__name__}, which JSON has no form for.")


def read_form(kind: type[T], form: object, where: str, error: type[VisAccelError] = UsageError) -> T:
    """Builds `kind`, a dataclass, from what `to_form` gives; unknown, missing and ill-typed fields are refused by name."""
    return cast("T", _read(kind, form, where, error))


def read_field(kind: type, name: str, form: object, where: str, error: type[VisAccelError] = UsageError) -> Any:
    """The value of one field of the dataclass `kind`, read as `read_form` would."""
    return _read(_hints(kind)[name], form, f"{where}.{name}", error)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _read(hint: Any, form: object, where: str, error: type[VisAccelError]) -> object:
    origin, members = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        return _read_object(cast("type", hint), form, where, error)
    if origin is dict and isinstance(form, Mapping):
        return {str(key): _read(members[1], element, f"{where}.{key}", error) for key, element in form.items()}
    if origin is tuple and isinstance(form, (list, tuple)):
        return tuple(_read(members[0], element, f"{where}[{index}]", error) for index, element in enumerate(form))
    if origin is Literal and form in members:
        return form
    if origin in (Union, types.UnionType):
        if form is None and type(None) in members:
            return None
        scalar = type(form) in members or (type(form) is int and float in members)
        structured = next((member for member in members if get_origin(member) or is_dataclass(member)), None)
        if scalar:
            return float(cast("int", form)) if type(form) not in members else form
        if structured is None:
            _refuse(members, form, where, error)
        return _read(structured, form, where, error)
    if hint is Any or type(form) is hint or (hint is float and type(form) is int):
        return float(cast("int", form)) if hint is float else form
    return _refuse(members if origin is Literal else (hint,), form, where, error)


def _refuse(members: tuple[Any, ...], form: object, where: str, error: type[VisAccelError]) -> NoReturn:
    names = {str: "a text", int: "an integer", float: "a number", bool: "true or false", type(None): "null"}
    words = [names.get(member, repr(member) if isinstance(member, str) else "an object or a list") for member in members]
    raise error(f"{where} must be {either(dict.fromkeys(words))}; got {shown(form)}.")


def _read_object(kind: type, form: object, where: str, error: type[VisAccelError]) -> object:
    if not isinstance(form, Mapping):
        raise error(f"{where} must be an object; got {shown(form)}.")
    specs = {spec.name: spec for spec in fields(kind)}
    for key in form:
        if key not in specs:
            near = closest(str(key), specs)
            raise error(f"{where} has an unknown field {shown(key)}.", hint=f"did you mean {either(near)}?" if near else None)
    for name, spec in specs.items():
        if name not in form and spec.default is MISSING and spec.default_factory is MISSING:
            raise error(f"{where} lacks the field {name}.")
    return kind(**{name: _read(_hints(kind)[name], form[name], f"{where}.{name}", error) for name in specs if name in form})
