"""From what is chosen on the page to a recipe, and back: which sampler, which switches, which numbers. Knows nothing of the page itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vis_accel import registry
from vis_accel.app import recipes
from vis_accel.app.catalog import Model, conflicts
from vis_accel.app.controls import Control, controls
from vis_accel.app.recipes import calls_of
from vis_accel.errors import UsageError, VisAccelError
from vis_accel.method import Method
from vis_accel.recipe import Recipe
from vis_accel.samplers import schedules
from vis_accel.samplers.solver import Solver

__all__ = ["Choice", "compose", "described", "fits", "reason", "sampler_reason", "schedule_names"]

STEPS, SCHEDULE = "steps", "schedule"


@dataclass(frozen=True)
class Choice:
    """What is chosen.

    Attributes:
        sampler: its name; empty: the model's own.
        steps: of the sampler.
        schedule: name of where its knots lie; None: keep the one of the recipe so far.
        methods: the other methods that are switched on.
        options: (method, option) -> value, of those that are shown.
    """

    sampler: str
    steps: int
    schedule: str | None
    methods: tuple[str, ...]
    options: Mapping[tuple[str, str], Any]


def compose(before: Recipe, choice: Choice) -> Recipe:
    """The recipe of a choice; options that the page cannot show are kept from the recipe `before`.

    Raises:
        UsageError: a value an option refuses, a conflict.
    """
    there = {method.name: method for method in before.methods}
    made = [_method(name, there.get(name), choice) for name in choice.methods]
    if choice.sampler:
        made.append(_method(choice.sampler, there.get(choice.sampler), choice))
    return Recipe(made)


def _method(name: str, before: Method | None, choice: Choice) -> Method:
    kind = registry.load(name)
    options: dict[str, Any] = {} if before is None else dict(before.options())
    for control in controls(kind):
        if (name, control.name) in choice.options:
            _take(options, control, choice.options[name, control.name])
    if issubclass(kind, Solver):
        if choice.schedule is not None:
            options[SCHEDULE] = choice.schedule
        own = options.get(SCHEDULE)
        options[STEPS] = None if isinstance(own, tuple) else choice.steps
    return kind.from_options(options)


def _take(options: dict[str, Any], control: Control, value: Any) -> None:
    """Writes a shown value down, unless it only stands for one that cannot be shown."""
    hidden = control.name in options and control.shows(options[control.name]) is None
    if value is None and (hidden or not control.optional):
        return
    options[control.name] = control.reads(value)


def reason(model: Model, recipe: Recipe, name: str) -> str | None:
    """Why the method `name` cannot be switched on now: the model, or what is chosen already. None: it can."""
    offer = model.offers[name]
    return offer.refusal or conflicts(recipe, offer.kind)


def sampler_reason(recipe: Recipe) -> str | None:
    """Why no sampler can be chosen now: a method of the recipe brings its own. None: one can."""
    for method in recipe.methods:
        if not isinstance(method, Solver) and _brings_sampler(method):
            return f"{method.name} brings its own sampler."
    return None


def _brings_sampler(method: Method) -> bool:
    return any(touch.what == "scheduler" and touch.mode == "replaces" for touch in method.touches)


def fits(model: Model, text: str) -> bool:
    """Whether this model can have the recipe of a text."""
    try:
        recipe = recipes.read(text)
        recipes.admit(recipe, model.settings)
        recipes.admit_on(recipe, model.view, None if model.classifier else model.steps, model.settings)
    except VisAccelError:
        return False
    return True


def schedule_names(model: Model, kind: type[Method]) -> list[str]:
    """The schedules that this sampler can have on this model, with any number of steps."""
    found = []
    for name in schedules.NAMES:
        try:
            kind.from_options({SCHEDULE: name, STEPS: 6}).check_target(model.view)
        except UsageError:
            continue
        found.append(name)
    return found


def described(model: Model, recipe: Recipe) -> str:
    """What a recipe will do, the first line for everybody: calls of the network, tokens in each block."""
    if not recipe.methods:
        return f"As the model comes: {model.steps} steps." if not model.classifier else "As the model comes."
    lines = [line for method in recipe.methods for line in method.describe(model.view)]
    sampler = next((method for method in recipe.methods if _brings_sampler(method)), None)
    if sampler is not None:
        calls = calls_of(sampler, model.view, model.steps) if isinstance(sampler, Solver) else getattr(sampler, "steps", model.steps)
        lines.insert(0, f"{calls} call{'s' if calls != 1 else ''} of the network a picture, instead of {model.steps}.")
    return "\n".join(line[:1].upper() + line[1:] for line in lines) or "Ready."
