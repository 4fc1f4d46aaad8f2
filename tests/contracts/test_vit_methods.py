"""What every method for vision transformers must keep, whoever wrote it: tested the day it is registered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from vit_models.families import images, state, tiny

from vis_accel import registry
from vis_accel.apply import accelerate
from vis_accel.errors import NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch
from vis_accel.recipe import Recipe

FAMILIES = ("weights", "tokens", "depth")
PIPELINES_ONLY = "vis_accel.students."  # weights of few-step students
NAMES = sorted(name for name, entry in registry.METHODS.items() if entry.family in FAMILIES and not entry.target.startswith(PIPELINES_ONLY))
FOR_BOTH = ("channels-last",)  # methods of these families that fit pipelines too


@dataclass(frozen=True, kw_only=True)
class Failing(Method):
    """Fails after everything else was applied."""

    name: ClassVar[str] = "failing"
    family: ClassVar[Family] = "compile"
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = ()

    def apply(self, target: Any, context: Context) -> Handle:
        raise RuntimeError("half-way")


def applied(model: Any, name: str) -> Handle | None:
    """The method with its defaults on the model; None if it needs training, which it must then say, with the way to get it."""
    try:
        return accelerate(model, name)
    except NotApplicableError as error:
        refusal = error
    assert "train" in refusal.message
    assert refusal.hint
    return None


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    found: torch.Tensor = model(images())
    return found


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_taken_off(name: str) -> None:
    model = tiny("plain")
    plain, before = logits(model), state(model)
    handle = applied(model, name)
    if handle is None:
        assert state(model) == before
        return
    changed = logits(model)
    assert changed.shape == plain.shape
    assert changed.isfinite().all()
    assert torch.equal(logits(model), changed)  # the same twice: nothing random is left on
    handle.suspend()
    assert torch.equal(logits(model), plain)
    handle.resume()
    assert torch.equal(logits(model), changed)
    handle.remove()
    assert torch.equal(logits(model), plain)
    assert state(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_what_fails_half_way_leaves_nothing(name: str) -> None:
    model = tiny("plain")
    before = state(model)
    if (handle := applied(model, name)) is None:
        return
    handle.remove()
    with pytest.raises(RuntimeError, match="half-way"):
        accelerate(model, Recipe((registry.load(name)(), Failing())))
    assert state(model) == before


@pytest.mark.parametrize("name", [name for name in NAMES if name not in FOR_BOTH])
def test_pipelines_are_refused(name: str) -> None:
    class Pipeline:
        """What `pipelines.view` gives, for all a method may ask."""

        install_scheduler = None

    with pytest.raises(NotApplicableError, match=name):
        registry.load(name)().check_target(Pipeline())
