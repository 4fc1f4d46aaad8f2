"""The error tree: two branches, two exit codes, hints, and names cut to size."""

from __future__ import annotations

import pytest

from vis_accel import errors
from vis_accel.errors import RunError, UnknownNameError, UsageError, VisAccelError, closest, either, shown

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, VisAccelError)]


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_usage_with_2_or_a_failed_run_with_1(kind: type[VisAccelError]) -> None:
    if kind is not VisAccelError:
        assert issubclass(kind, UsageError) != issubclass(kind, RunError)
    assert kind.exit_code == (2 if issubclass(kind, UsageError) else 1)
    assert kind.__name__ in (errors.__doc__ or "")
    assert kind.__doc__


def test_the_hint_follows_the_message_after_a_blank_line() -> None:
    assert str(VisAccelError("It broke.", hint="mend it")) == "It broke.\n\nhint: mend it"
    assert str(VisAccelError("It broke.")) == "It broke."


def test_an_unknown_name_gets_the_three_closest() -> None:
    error = UnknownNameError.of("method", "dpmp", ["dpm", "dpmpp", "ddpm", "ddim", "heun"])
    assert error.message == "There is no method named 'dpmp'."
    assert error.hint is not None
    assert error.hint.startswith("did you mean dpm")
    assert error.hint.count(",") == 1


def test_a_name_far_from_all_gets_all() -> None:
    assert UnknownNameError.of("method", "zzz", ["b", "a"]).hint == "allowed: a, b"
    assert UnknownNameError.of("option of x", "zzz", []).hint == "allowed: none"


def test_a_huge_name_neither_floods_the_message_nor_takes_time() -> None:
    error = UnknownNameError.of("method", "d" * 10**6, ["dpm"])
    assert len(str(error)) < 200


def test_helpers() -> None:
    assert closest("Kar", ["karras"]) == ["karras"]
    assert [either(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a or b", "a, b or c"]
    assert shown("\x1b[31m") == r"'\x1b[31m'"
    assert len(shown(list(range(1000)))) <= 60
    assert shown(10**5000) == "<a huge int>"
