"""From controls to recipes and back, for whatever methods the registry has."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ClassVar

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

from vis_accel import registry
from vis_accel.app.catalog import Catalog, Model, conflicts
from vis_accel.app.composing import Choice, compose, described, fits, reason, sampler_reason, schedule_names
from vis_accel.app.controls import controls
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class Brand(Method):
    """A method nobody knew."""

    name: ClassVar[str] = "brand-new"
    family: ClassVar[Family] = "cache"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("blocks", "wraps"),)

    interval: int = option(3, "calls between two whole ones", low=1, high=9)
    depth: int | None = option(None, "the blocks kept", low=0)
    kind: str = option("deep", "what is kept", choices=("deep", "shallow"))
    exact: bool = option(False, "whether nothing is left out")
    where: str = option("here", "a file")
    layers: tuple[int, ...] = option((), "some blocks")

    def apply(self, target: Any, context: Context) -> Handle:
        return Handle(target, str(self))


def choice(**given: Any) -> Choice:
    return Choice(**{"sampler": "", "steps": 10, "schedule": None, "methods": (), "options": {}, **given})


def test_every_option_of_every_method_that_is_shown_can_be_set_to_its_default_again() -> None:
    for name in registry.entries():
        kind = registry.load(name)
        for control in controls(kind):
            value = control.shows(control.default)
            assert kind.from_options({control.name: control.reads(value)}) == kind(), f"{name}.{control.name}"


def test_a_new_method_appears_by_itself(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("brand_new_methods")
    module.Brand = Brand  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "brand_new_methods", module)
    monkeypatch.setitem(
        registry.METHODS, "brand-new", registry.Entry("brand_new_methods:Brand", "cache", "none", "keeps what was computed")
    )
    model = Model(catalog.get("cifar10-dit").opened, catalog.settings)
    offer = model.offers["brand-new"]
    assert (offer.refusal, offer.foreign, offer.summary) == (None, False, "keeps what was computed")
    shown = {control.name: control for control in controls(Brand)}
    assert {name: control.kind for name, control in shown.items()} == {
        "interval": "number", "depth": "number", "kind": "list", "exact": "switch",
    }  # fmt: skip
    assert (shown["interval"].low, shown["interval"].high, shown["interval"].whole) == (1, 9, True)
    assert shown["depth"].optional
    picked = choice(sampler="dpm", methods=("brand-new",), options={("brand-new", "interval"): 5.0, ("brand-new", "exact"): True})
    assert str(compose(Recipe.empty, picked)) == "brand-new(interval=5, exact=True) + dpm(steps=10)"


def test_what_cannot_be_shown_is_kept_from_the_text() -> None:
    before = Recipe.parse("tome(r=(5, 4, 3, 2, 1, 1, 1, 1, 1), shape='constant')")
    after = compose(before, choice(methods=("tome",), options={("tome", "r"): None, ("tome", "proportional"): "off"}))
    assert str(after) == "tome(r=(5, 4, 3, 2, 1, 1, 1, 1, 1), proportional='off')"
    knots = "dpm(schedule=(80.0, 5.0, 0.5))"
    assert str(compose(Recipe.parse(knots), choice(sampler="dpm", steps=40))) == knots


def test_conflicts_grey_a_method_with_the_reason(catalog: Catalog) -> None:
    model = catalog.get("cifar10-vit")
    chosen = Recipe.parse("tome(r=5)")
    assert reason(model, chosen, "evit") == "evit and tome both replace the tokens."
    assert reason(model, chosen, "tome") is None
    assert reason(model, Recipe.empty, "evit") is None
    assert "none ship" in str(reason(model, Recipe.empty, "adavit"))
    assert conflicts(Recipe.parse("dpm"), registry.load("heun")) == "dpm and heun both replace the scheduler."


def test_a_student_brings_its_sampler_and_the_page_says_so(catalog: Catalog) -> None:
    model = catalog.get("cifar10-dit")
    chosen = Recipe.parse("distilled")
    assert sampler_reason(chosen) == "distilled brings its own sampler."
    assert sampler_reason(Recipe.parse("dpm + bf16")) is None
    assert reason(model, Recipe.parse("dpm"), "distilled") == "distilled and dpm both replace the scheduler."
    assert reason(model, chosen, "guidance-window") == "distilled and guidance-window both replace the unconditional half."
    assert described(model, chosen).startswith("4 calls of the network a picture, instead of 50.")


def test_presets_are_those_that_the_model_can_have(catalog: Catalog) -> None:
    from vis_accel.app.pages.generate import PRESETS

    fitting = {name: [text for _, text in PRESETS if fits(catalog.get(name), text)] for name in ("cifar10-dit", "cifar10-unet")}
    assert fitting["cifar10-dit"] == fitting["cifar10-unet"] == [text for _, text in PRESETS]  # both have a student
    assert not fits(catalog.get("cifar10-unet"), "guidance-window")
    assert not fits(catalog.get("cifar10-unet"), "distilled(steps=3)")  # its student has four


def test_methods_of_the_other_half_are_left_out(catalog: Catalog) -> None:
    def foreign(model: Model) -> set[str]:
        return {name for name, offer in model.offers.items() if offer.foreign}

    assert foreign(catalog.get("cifar10-dit")) >= {"tome", "early-exit", "tuned"}
    assert not foreign(catalog.get("cifar10-dit")) & {"dpm", "distilled", "int8", "deepcache", "guidance-window"}
    assert foreign(catalog.get("cifar10-vit")) >= {"dpm", "distilled", "deepcache", "guidance-window"}
    assert not foreign(catalog.get("cifar10-vit")) & {"tome", "tuned", "int8", "early-exit"}


def test_the_note_counts_calls(catalog: Catalog) -> None:
    model = catalog.get("cifar10-dit")
    assert described(model, Recipe.parse("heun(steps=5)")).startswith("9 calls of the network a picture, instead of 50.")
    assert described(model, Recipe.empty) == "As the model comes: 50 steps."
    names = schedule_names(model, registry.load("dpm"))
    assert {"auto", "trailing", "karras"} <= set(names)
    assert not {"flow", "ays"} & set(names)
