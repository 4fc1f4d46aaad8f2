"""`accelerate`: puts a recipe on a target, in the canonical order of its families, and hands back the way to take it off."""

from __future__ import annotations

from typing import Any

from vis_accel.calibration import Calibration, Progress, exercise, nothing
from vis_accel.clock import Clock
from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.handle import Handle
from vis_accel.method import Context, Method
from vis_accel.recipe import Recipe

__all__ = ["accelerate"]


def accelerate(
    target: Any, recipe: Recipe | Method | str, *, calibration: Calibration | None = None, progress: Progress = nothing
) -> Handle:
    """Applies `recipe` to `target`, all of it or nothing.

        with accelerate(pipe, "dpm(steps=12)"):
            pipe(class_labels=[1])

    Args:
        target: a `diffusers.DiffusionPipeline`, or an image classifier of timm.
        recipe: a `Recipe`, its text, or one method.
        calibration: what methods that look at a run of the target (int8) run it on: for a pipeline a `Job`, for a network a batch of its
            inputs or several. A pipeline that takes no text, and a bundled classifier, need none.
        progress: told, while methods calibrate and round, what is being done, how much of it is, and how much there is.

    Returns:
        The handle of the whole recipe: a context manager; `remove()` leaves the target as it was, `suspend()` and `resume()` switch.

    Raises:
        UsageError: an empty recipe (it would do nothing), a text that does not parse, options out of range, a conflict.
        NotApplicableError: a method on a target it does not fit.
    """
    if isinstance(recipe, Method):
        recipe = Recipe((recipe,))
    elif isinstance(recipe, str):
        recipe = Recipe.parse(recipe)
    if not recipe.methods:
        raise UsageError("The recipe is empty: it would change nothing.", hint="vis-accel list shows the methods there are")
    found = _view(target)
    run = Clock(target, lambda: found.noise) if hasattr(found, "install_scheduler") else None
    context = Context(recipe=recipe, view=found, run=run, exercise=exercise(target, found, calibration, progress), progress=progress)
    for method in recipe.methods:
        method.check_target(context.view)
    return Handle.compose(target, str(recipe), [lambda method=method: method.apply(target, context) for method in recipe.methods])  # type: ignore[misc]


def _view(target: Any) -> Any:
    from torch import nn

    if isinstance(target, nn.Module):  # asked first: it needs no diffusers
        from vis_accel.vit_models.view import view

        if type(target).__module__.startswith("diffusers."):
            raise NotApplicableError(
                f"A recipe goes on a diffusers pipeline or a timm model; got {type(target).__module__}.{type(target).__name__}.",
                hint="pass the pipeline itself, not its unet or transformer",
            )
        return view(target)
    from diffusers import DiffusionPipeline

    from vis_accel import pipelines

    if isinstance(target, DiffusionPipeline):
        return pipelines.view(target)
    raise NotApplicableError(
        f"A recipe goes on a diffusers pipeline or a timm model; got {type(target).__module__}.{type(target).__name__}.",
        hint="pass the pipeline itself, or a network of timm",
    )
