"""Methods validate themselves, say why in one sentence, and have an exact text form."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fakes import Alpha, Fake, Quant

from vis_accel.errors import UnknownNameError, UsageError
from vis_accel.method import FAMILIES, option


def test_the_canonical_order() -> None:
    expected = "architecture weights attention tokens depth cache guidance sampler precision compile"
    assert tuple(expected.split()) == FAMILIES


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "alpha(steps=0): steps is the number of solver steps and must be >= 1; got 0."),
        ({"steps": True}, "alpha(steps=True): steps is the number of solver steps and must be an integer or None; got True."),
        ({"steps": 1.0}, "must be an integer or None; got 1.0."),
        ({"steps": "3"}, "must be an integer or None; got '3'."),
        ({"steps": 2**63}, "must be an integer or None"),
        ({"steps": 10**5000}, "must be an integer or None"),
        ({"eta": float("nan")}, "must be a finite number; got nan."),
        ({"eta": float("inf")}, "must be a finite number; got inf."),
        ({"eta": False}, "must be a finite number; got False."),
        ({"eta": 10**400}, "must be a finite number"),
        ({"eta": 1.5}, "must be >= 0 and <= 1; got 1.5."),
        ({"schedule": 3}, "must be a text or a tuple, each element a finite number; got 3."),
        ({"schedule": (1.0, "x")}, "each element a finite number"),
        ({"schedule": "karas"}, "must be one of 'auto', 'karras', 'logsnr'; got 'karas'."),
        ({"schedule": "\ud800"}, "must be a text"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        Alpha(**options)
    assert message in caught.value.message
    assert len(caught.value.message) < 300


def test_a_wrong_choice_gets_the_closest() -> None:
    with pytest.raises(UsageError) as caught:
        Alpha(schedule="karas")
    assert caught.value.hint == "did you mean 'karras'?"


def test_literal_annotations_allow_exactly_their_values() -> None:
    assert Quant(bits=4).bits == 4
    for wrong in (5, True, 4.0, "4", [4]):
        with pytest.raises(UsageError, match="must be 4 or 8"):
            Quant(bits=wrong)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="must be True or False"):
        Quant(on=1)  # type: ignore[arg-type]


def test_values_take_the_one_form_that_text_gives_back() -> None:
    method = Alpha(eta=1, schedule=[3, 2, 1])  # type: ignore[arg-type]
    assert method.options() == {"schedule": (3.0, 2.0, 1.0), "eta": 1.0}
    assert type(method.eta) is float
    assert str(method) == "alpha(schedule=(3.0, 2.0, 1.0), eta=1.0)"
    assert hash(method) == hash(Alpha(eta=1.0, schedule=(3.0, 2.0, 1.0)))


def test_only_what_differs_from_the_default_is_written() -> None:
    assert str(Alpha()) == "alpha"
    assert str(Alpha(steps=None, eta=0)) == "alpha"


def test_methods_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Alpha().steps = 3  # type: ignore[misc]


def test_from_options_names_the_closest_option() -> None:
    assert Alpha.from_options({"steps": 3}) == Alpha(steps=3)
    with pytest.raises(UnknownNameError) as caught:
        Alpha.from_options({"step": 3})
    assert caught.value.message == "There is no option of alpha named 'step'."
    assert caught.value.hint == "did you mean steps?"


def test_from_options_says_which_option_is_missing() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Trained(Fake):
        name: ClassVar[str] = "trained"
        file: str

    with pytest.raises(UsageError, match="trained needs the option file"):
        Trained.from_options({})
    assert str(Trained(file="a b.safetensors")) == "trained(file='a b.safetensors')"


def test_an_annotation_that_text_could_not_carry_is_our_mistake() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Wrong(Fake):
        name: ClassVar[str] = "wrong"
        table: Path = option(Path(), "no literal")  # noqa: RUF009 - a method's field specifier

    with pytest.raises(TypeError, match="only int, float, str"):
        Wrong()
