"""The table of methods: lazy, checked on load, open to other packages."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import fakes
import pytest

from vis_accel import registry
from vis_accel.errors import RunError, UnknownNameError, UsageError
from vis_accel.method import FAMILIES
from vis_accel.registry import Entry


class Dist:
    name = "other-package"


class Point:
    """An entry point as importlib.metadata gives it."""

    dist = Dist()

    def __init__(self, name: str, value: str) -> None:
        self.name, self.value = name, value


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fakes.register(monkeypatch)
    registry._plugins.cache_clear()
    yield
    registry._plugins.cache_clear()


def install(monkeypatch: pytest.MonkeyPatch, *points: Point) -> None:
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == registry.GROUP else ())


def test_every_row_is_complete() -> None:
    for name, entry in registry.METHODS.items():
        assert entry.family in FAMILIES, name
        assert ":" in entry.target
        assert "arXiv:" in entry.paper or entry.paper == "no paper" or entry.paper.startswith("Ansel et al. 2024, ASPLOS")
        assert entry.summary
        assert not entry.summary.endswith(".")


def test_load_gives_the_class_also_by_its_alias() -> None:
    assert registry.load("alpha") is fakes.Alpha
    assert registry.ALIASES == {"dpm++": "dpmpp"}


def test_an_unknown_name_gets_the_closest() -> None:
    with pytest.raises(UnknownNameError) as caught:
        registry.load("alpa")
    assert caught.value.hint is not None
    assert "alpha" in caught.value.hint


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (Entry("fake_methods:Nothing", "sampler", "", ""), "cannot be loaded"),
        (Entry("no_such_module:Alpha", "sampler", "", ""), "cannot be loaded"),
        (Entry("builtins:dict", "sampler", "", ""), "no subclass"),
        (Entry("fake_methods:Alpine", "sampler", "", ""), "it is named 'alpine'"),
        (Entry("fake_methods:Alpha", "precision", "", ""), "its family is 'sampler'"),
    ],
)
def test_a_row_that_promises_too_much_is_an_error(monkeypatch: pytest.MonkeyPatch, entry: Entry, reason: str) -> None:
    monkeypatch.setitem(registry.METHODS, "alpha", entry)
    with pytest.raises(RunError, match=reason):
        registry.load("alpha")


def test_another_package_adds_a_method(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(registry.METHODS, "alpine")
    install(monkeypatch, Point("alpine", "fake_methods:Alpine"))
    assert registry.load("alpine") is fakes.Alpine
    assert registry.entries()["alpine"].package == "other-package"
    assert list(registry.entries()) == sorted(registry.entries())


@pytest.mark.parametrize("name", ["ddim", "none", "dpm++"])
def test_another_package_cannot_take_a_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    install(monkeypatch, Point(name, "fake_methods:Alpha"))
    for use in (registry.entries, lambda: registry.load("ddim")):
        with pytest.raises(UsageError, match="has one already") as caught:
            use()
        assert caught.value.hint == "pip uninstall other-package"


def test_two_packages_cannot_share_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    points: list[Any] = [Point("mine", "fake_methods:Alpha"), Point("mine", "fake_methods:Alpine")]
    install(monkeypatch, *points)
    with pytest.raises(UsageError, match="other-package has one already"):
        registry.entries()


def test_the_registry_imports_no_torch() -> None:
    code = "import sys, vis_accel.registry as r; r.entries(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
