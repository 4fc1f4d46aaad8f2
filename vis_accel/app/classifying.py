"""One picture, classified plainly and under a recipe: answers, times, what became of its tokens, and where it left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vis_accel.app import recipes
from vis_accel.app.catalog import Catalog, Model
from vis_accel.app.requests import ClassifyRequest
from vis_accel.app.tokens import Stage, drawn
from vis_accel.app.watching import Progress, prepare
from vis_accel.app.worker import Task
from vis_accel.errors import NoEffectError
from vis_accel.eval.interval import Interval
from vis_accel.eval.speed import interleave
from vis_accel.recipe import Recipe
from vis_accel.zoo.labelled import Preparation

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Answer", "Classified", "start_classify"]

TOP = 5
ROUNDS, SECONDS = 40, 1.5  # of the timing
_FOLLOWED = ("tokens", "weights", "architecture")  # families that decide what becomes of tokens


@dataclass(frozen=True)
class Answer:
    """What one model says: (class, probability), the likeliest first, and the seconds a call took in the median."""

    top: tuple[tuple[str, float], ...]
    seconds: float


@dataclass(frozen=True)
class Classified:
    """Both answers.

    Attributes:
        picture: what the network saw, uint8, 3 x H x W.
        plain, fast: the model as it comes, and under the recipe; equal for the empty recipe.
        ratio: how many times faster the second is.
        stages: what became of the tokens.
        exits: where it left and why, in lines; empty without exits.
        lines: what the methods say they do to this model.
    """

    picture: Tensor
    plain: Answer
    fast: Answer
    ratio: Interval
    stages: tuple[Stage, ...]
    exits: tuple[str, ...]
    lines: tuple[str, ...]


def start_classify(request: ClassifyRequest, image: Image, catalog: Catalog) -> Task:
    """Starts a request in the model's own thread; `task.result` is a `Classified`."""
    model, recipe = catalog.get(request.model), recipes.read(request.recipe)
    return model.worker.start(lambda task: _classify(model, recipe, image, task))


@torch.no_grad()
def _classify(model: Model, recipe: Recipe, image: Image, task: Task) -> Classified:
    preparation = Preparation.of(model.target)
    picture = preparation.transform(image)
    x = preparation.normalised(picture[None], next(model.target.parameters()))
    logits: dict[str, Tensor] = {}
    runs = 0

    def run(name: str, used: Recipe) -> None:
        nonlocal runs
        task.check()
        logits[name] = model.target(x)
        runs += 1
        task.report(Progress(runs, 4 * ROUNDS + 2, None, "timing"))

    active: list[Any] = []

    def switch(name: str) -> None:
        while active:
            active.pop().suspend()
        handle = model.variants.prepare(recipe) if name == "fast" else None
        if handle is not None:
            handle.resume()
            active.append(handle)

    prepare(model.variants, recipe, task, model.settings.prepare_seconds)
    try:
        both = {"plain": lambda: run("plain", Recipe.empty), "fast": lambda: run("fast", recipe)}
        timings = interleave(both, rounds=ROUNDS, warmup=2, budget_s=min(SECONDS, model.settings.timing_seconds), prepare=switch)
    finally:
        while active:
            active.pop().suspend()
    names = model.classes
    return Classified(
        picture=picture,
        plain=Answer(_top(logits["plain"], names), timings.median("plain")),
        fast=Answer(_top(logits["fast"], names), timings.median("fast")),
        ratio=timings.ratio("fast", "plain"),
        stages=_stages(model, recipe, x, picture),
        exits=_exits(model, recipe, x),
        lines=tuple(line for method in recipe.methods for line in method.describe(model.view)),
    )


def _top(logits: Tensor, names: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    probabilities, classes = logits[0].float().softmax(dim=0).topk(min(TOP, logits.shape[1]))
    pairs = zip(classes.tolist(), probabilities.tolist(), strict=True)
    return tuple((names[index] if names else f"class {index}", probability) for index, probability in pairs)


def _stages(model: Model, recipe: Recipe, x: Tensor, picture: Tensor) -> tuple[Stage, ...]:
    """What became of the tokens, block by block; exits and compilation, which hide it, are left out."""
    from vis_accel.token_pruning.trace import trace_blocks

    followed = Recipe(method for method in recipe.methods if method.family in _FOLLOWED)
    if not any(method.family == "tokens" for method in followed.methods):
        return ()
    try:
        with model.variants.on(followed):
            traces = trace_blocks(model.target, x)
    except NoEffectError:
        return ()
    return drawn(traces, picture, model.view.grid, model.view.prefix)


def _exits(model: Model, recipe: Recipe, x: Tensor) -> tuple[str, ...]:
    from vis_accel.early_exit.explain import explain

    with model.variants.on(recipe):
        try:
            seen = explain(model.target, x)
        except NoEffectError:
            return ()
    lines = []
    for exit_ in seen:
        bound = "nobody leaves here" if exit_.threshold is None else f"{exit_.threshold:.3g} is enough"
        lines.append(f"After block {exit_.block}: {'left' if exit_.left else 'went on'}, sure to {exit_.score:.3g}; {bound}.")
    if not any(exit_.left for exit_ in seen):
        lines.append(f"It went all the way, through {len(model.view.blocks)} blocks.")
    return tuple(lines)
