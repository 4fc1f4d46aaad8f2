"""What every method of the registry must keep, whoever wrote it."""

from __future__ import annotations

import dataclasses
import sys
import typing
from typing import Any

import pytest

from vis_accel import registry
from vis_accel.errors import UnknownNameError, UsageError
from vis_accel.method import FAMILIES, Bounds, Method, Touch
from vis_accel.recipe import Recipe

NAMES = sorted(registry.METHODS)
NONSENSE: list[Any] = [float("nan"), float("inf"), float("-inf"), 10**400, "\0nonsense", b"x", {}, object(), [[[]]], 1j]


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest) -> type[Method]:
    return registry.load(request.param)


def allowed(kind: type[Method], name: str) -> list[type]:
    """The plain types an option takes, outside tuples."""
    hint = typing.get_type_hints(kind)[name]
    return [member for member in (hint, *typing.get_args(hint)) if isinstance(member, type)]


def refuses(kind: type[Method], name: str, value: object) -> bool:
    try:
        kind.from_options({name: value})
    except UsageError as error:
        return name in error.message and kind.name in error.message
    return False


def test_the_class_is_what_the_table_says(method: type[Method]) -> None:
    entry = registry.METHODS[method.name]
    assert registry.load(method.name) is method
    assert (method.family, method.family in FAMILIES) == (entry.family, True)
    assert method.exactness in ("equivalent", "approximate")
    assert dataclasses.is_dataclass(method)
    assert all(spec.kw_only for spec in dataclasses.fields(method))
    assert method.touches
    assert all(isinstance(touch, Touch) and touch.mode in ("replaces", "wraps") for touch in method.touches)
    assert isinstance(method.needs, frozenset)
    assert isinstance(method.breaks, frozenset)


def test_it_is_frozen(method: type[Method]) -> None:
    made = method.from_options({})
    for spec in dataclasses.fields(made):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, spec.name, None)


def test_the_default_round_trips_through_text_and_json(method: type[Method]) -> None:
    made = method.from_options({})
    recipe = Recipe([made])
    assert str(recipe) == method.name
    assert Recipe.parse(str(recipe)) == recipe == Recipe.from_json(recipe.to_json())
    assert hash(made) == hash(method.from_options({}))


def test_every_default_written_out_is_the_default(method: type[Method]) -> None:
    made = method.from_options({})
    for spec in dataclasses.fields(made):
        text = f"{method.name}({spec.name}={getattr(made, spec.name)!r})"
        assert Recipe.parse(text).methods == (made,)
        assert str(Recipe.parse(text)) == method.name


def test_its_documentation_names_its_paper(method: type[Method]) -> None:
    entry = registry.METHODS[method.name]
    text = f"{sys.modules[method.__module__].__doc__}\n{method.__doc__}"
    author, _, number = entry.paper.partition(" ")[0], *entry.paper.rpartition("arXiv:" if "arXiv:" in entry.paper else ", ")[1:]
    assert method.__doc__
    assert not method.__doc__.startswith(f"{method.__name__}(")  # the signature that dataclass writes where there is no docstring
    assert author in text
    assert number in text


def test_every_option_says_what_it_is(method: type[Method]) -> None:
    for spec in dataclasses.fields(method):
        bounds = spec.metadata.get("bounds")
        assert isinstance(bounds, Bounds), f"{method.name}({spec.name}): declare it with option(default, meaning)"
        assert bounds.meaning


def test_no_option_takes_nonsense(method: type[Method]) -> None:
    for spec in dataclasses.fields(method):
        for value in NONSENSE:
            assert refuses(method, spec.name, value), f"{method.name}({spec.name}={value!r})"


def test_no_option_takes_another_type(method: type[Method]) -> None:
    samples: dict[type, Any] = {int: 3, float: 0.5, str: "text", bool: True, type(None): None}
    for spec in dataclasses.fields(method):
        hint, fits = typing.get_type_hints(method)[spec.name], allowed(method, spec.name)
        for kind, value in samples.items():
            fitting = kind in fits or (kind is int and float in fits) or typing.get_origin(hint) is typing.Literal
            if not fitting:
                assert refuses(method, spec.name, value), f"{method.name}({spec.name}={value!r})"


def test_an_unknown_option_gets_the_closest(method: type[Method]) -> None:
    for spec in dataclasses.fields(method):
        with pytest.raises(UnknownNameError, match=f"option of {method.name}") as caught:
            method.from_options({spec.name + "x": 1})
        assert caught.value.hint is not None
        assert spec.name in caught.value.hint
