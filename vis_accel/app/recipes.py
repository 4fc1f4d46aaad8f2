"""Which recipes a stranger may ask for: those that read no file, end soon, and fit the model."""

from __future__ import annotations

from dataclasses import fields
from functools import lru_cache
from typing import Any, get_args, get_type_hints

from vis_accel import addons
from vis_accel.app.settings import Settings
from vis_accel.errors import NotApplicableError, UsageError, shown
from vis_accel.method import Method
from vis_accel.recipe import Recipe
from vis_accel.samplers.driver import plan
from vis_accel.samplers.solver import Solver

__all__ = ["LONGEST", "admit", "admit_on", "calls_of", "read"]

LONGEST = 1000  # characters of a recipe's text


def read(text: str) -> Recipe:
    """The recipe of a text; a blank one is the empty recipe.

    Raises:
        UsageError: too long, or as `Recipe.parse`.
    """
    if len(text) > LONGEST:
        raise UsageError(f"A recipe's text has at most {LONGEST} characters here; got {len(text)}.")
    return Recipe.parse(text) if text.strip() else Recipe.empty


def admit(recipe: Recipe, settings: Settings) -> None:
    """Refuses what no stranger may ask for, whatever the model.

    Raises:
        UsageError: an option that names a file, a compilation, more steps than allowed.
    """
    for method in recipe.methods:
        _refuse_files(method)
        if not settings.slow_methods and (method.family == "compile" or getattr(method, "compile", False) is True):
            raise UsageError(f"{method.name} compiles: up to a minute before the first result.", hint="start the app with --slow-methods")
        if isinstance(method, Solver):
            _refuse_long(method, settings)


def admit_on(recipe: Recipe, view: Any, steps: int | None, settings: Settings) -> None:
    """Refuses what does not fit the model, or would take too many calls on it.

    Args:
        recipe: admitted before.
        view: of the model.
        steps: of the call, for a sampler that has none of its own.
        settings: what is allowed.

    Raises:
        UsageError: a method on a model it does not fit, too many calls.
    """
    for method in recipe.methods:
        method.check_target(view)
        if isinstance(method, Solver):
            calls = calls_of(method, view, steps)
            if calls > settings.max_calls:
                raise UsageError(f"{method} makes {calls:,} calls of the network; at most {settings.max_calls} are allowed here.")


def calls_of(solver: Solver, view: Any, steps: int | None) -> int:
    """Evaluations of the network in a run of `solver`, by a dry run.

    Raises:
        UsageError: a number of steps or a schedule the model cannot have; a solver that chooses its calls by looking at the data.
    """
    return _planned(solver, solver.on(view).knots(solver.steps or steps or 1, view.noise))


@lru_cache(maxsize=512)
def _planned(solver: Solver, knots: tuple[float, ...]) -> int:
    return len(plan(solver, knots))


def _refuse_long(solver: Solver, settings: Settings) -> None:
    """More steps than allowed, and repetitions whose dry run alone would take long."""
    repeats = 1
    for spec in fields(solver):
        value = getattr(solver, spec.name)
        if spec.name == "steps" and value is not None and value > settings.max_steps:
            raise UsageError(f"{solver.name}(steps={shown(value)}): at most {settings.max_steps} steps are allowed here.")
        if spec.name != "steps" and type(value) is int:
            repeats *= max(1, value)
            if repeats > settings.max_calls:
                raise UsageError(f"{shown(str(solver))} makes too many calls; at most {settings.max_calls} are allowed here.")
        if isinstance(value, tuple) and len(value) > settings.max_steps + 1:
            raise UsageError(f"{solver.name}({spec.name}=...): at most {settings.max_steps} steps are allowed here; got {len(value)}.")


def _refuse_files(method: Method) -> None:
    """Text options without a list of choices are names of files, or of parameters that ship; only the latter are for strangers."""
    hints = get_type_hints(type(method))
    for spec in fields(method):
        value, bounds = getattr(method, spec.name), spec.metadata.get("bounds")
        free = isinstance(value, str) and not (bounds and bounds.choices) and value not in _literals(hints[spec.name])
        if free and value not in addons.shipped(method.name):
            names = ", ".join(sorted(addons.shipped(method.name))) or "nothing for this method"
            raise NotApplicableError(f"{method.name}({spec.name}={shown(value)}): files cannot be named here.", hint=f"what ships: {names}")


def _literals(hint: Any) -> tuple[Any, ...]:
    """The values of a Literal, at any depth of a union."""
    parts = get_args(hint)
    return tuple(value for part in parts for value in ((part,) if isinstance(part, (str, int)) else _literals(part)))
