"""Methods that touch no model, and the way to put them into the registry for one test."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import pytest

from vis_accel import registry
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option


@dataclass(frozen=True, kw_only=True)
class Fake(Method):
    """A method that sets an attribute."""

    family: ClassVar[Family] = "sampler"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("scheduler", "replaces"),)

    steps: int | None = option(None, "the number of solver steps", low=1)
    schedule: str | tuple[float, ...] = option("auto", "where the knots lie", choices=("auto", "karras", "logsnr"))
    eta: float = option(0.0, "the share of fresh noise", low=0, high=1)

    def apply(self, target: Any, context: Context) -> Handle:
        with Handle.building(target, str(self)) as handle:
            handle.swap_attribute(target, "scheduler", self)
        return handle


@dataclass(frozen=True, kw_only=True)
class Alpha(Fake):
    name: ClassVar[str] = "alpha"


@dataclass(frozen=True, kw_only=True)
class Alpine(Fake):
    name: ClassVar[str] = "alpine"


@dataclass(frozen=True, kw_only=True)
class Quant(Fake):
    name: ClassVar[str] = "quant"
    family: ClassVar[Family] = "precision"
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("weights", "wraps"),)
    needs: ClassVar[frozenset[str]] = frozenset({"grid"})

    on: bool = option(True, "whether it is on")
    bits: Literal[4, 8] = option(8, "the width of a weight")
    words: tuple[str, ...] = option((), "names of layers")


@dataclass(frozen=True, kw_only=True)
class Cast(Quant):
    name: ClassVar[str] = "cast"


@dataclass(frozen=True, kw_only=True)
class Pruner(Fake):
    name: ClassVar[str] = "pruner"
    family: ClassVar[Family] = "tokens"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("blocks", "wraps"),)
    breaks: ClassVar[frozenset[str]] = frozenset({"grid"})


FAKES: tuple[type[Fake], ...] = (Alpha, Alpine, Quant, Cast, Pruner)


def register(monkeypatch: pytest.MonkeyPatch) -> None:
    """Adds the fakes to the registry until the test ends."""
    module = types.ModuleType("fake_methods")
    monkeypatch.setitem(sys.modules, "fake_methods", module)
    for fake in FAKES:
        setattr(module, fake.__name__, fake)
        entry = registry.Entry(f"fake_methods:{fake.__name__}", fake.family, "Nobody 2000, arXiv:0000.00000", "a fake")
        monkeypatch.setitem(registry.METHODS, fake.name, entry)
