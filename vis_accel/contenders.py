"""Who takes part in a benchmark: the stock pipeline under its own sampler, the best stock sampler, and the recipes held against both.

All of them live on one loaded pipeline. Each puts what it changes behind a handle that is suspended while another one runs, so that
switching costs microseconds and timings can be interleaved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from vis_accel.apply import accelerate
from vis_accel.errors import UsageError
from vis_accel.generation import Job, default_steps
from vis_accel.handle import Handle
from vis_accel.pipelines import PipelineView, view
from vis_accel.recipe import Recipe
from vis_accel.samplers import Solver

__all__ = ["FAST_STEPS", "Contender", "Stage"]

FAST_STEPS = 20  # of the second baseline: what diffusers' documentation recommends for DPM-Solver++


@dataclass(frozen=True)
class Contender:
    """One row of the card to be.

    Attributes:
        label: what the row is called.
        recipe: the empty one for a stock row.
        job: what is generated, with the number of steps of the call.
        handle: what it changes on the pipeline; None changes nothing.
    """

    label: str
    recipe: Recipe
    job: Job
    handle: Handle | None = None

    @property
    def stock(self) -> bool:
        """Whether it is the pipeline without any method of ours."""
        return not self.recipe.methods


class Stage:
    """One pipeline and everybody who takes part; at most one of them is on it at a time.

    Args:
        pipeline: the loaded pipeline, as it came.
        recipes: what is held against the baselines.
        job: what all of them generate; its steps are those of the first baseline.
        fallback_steps: for recipes that name no number of steps.

    Raises:
        UsageError: a recipe that occurs twice or does not fit the pipeline.
    """

    def __init__(self, pipeline: Any, recipes: Sequence[Recipe], job: Job) -> None:
        self.pipeline = pipeline
        self.view: PipelineView = view(pipeline)
        job.check(pipeline)
        self.job = replace(job, steps=job.steps or default_steps(pipeline))
        self._active: Contender | None = None
        twice = next((recipe for i, recipe in enumerate(recipes) if recipe in recipes[:i]), None)
        if twice is not None:
            raise UsageError(f"{twice} is asked for twice.")
        self.baselines = (self._own(), *self._fast())
        self.candidates = tuple(self.contender(recipe) for recipe in recipes)

    @property
    def everyone(self) -> tuple[Contender, ...]:
        """Baselines, then candidates."""
        return self.baselines + self.candidates

    def enter(self, contender: Contender) -> None:
        """Puts `contender` on the pipeline and takes off whoever is."""
        if contender is self._active:
            return
        self.clear()
        if contender.handle is not None:
            contender.handle.resume()
        self._active = contender

    def clear(self) -> None:
        """Leaves the pipeline as it came."""
        if self._active is not None and self._active.handle is not None:
            self._active.handle.suspend()
        self._active = None

    def close(self) -> None:
        """Takes everything off for good."""
        self.clear()
        for contender in reversed(self.everyone):
            if contender.handle is not None:
                contender.handle.remove()

    def drop(self, contender: Contender) -> None:
        """Takes off for good somebody who was asked for apart."""
        self.clear()
        if contender.handle is not None:
            contender.handle.remove()

    @contextmanager
    def countable(self, contender: Contender) -> Iterator[None]:
        """The pipeline doing the work of `contender` in a form whose multiplications the counter sees: in float, not compiled."""
        twin = contender.recipe.float_twin
        if twin == contender.recipe:
            self.enter(contender)
            yield
            return
        self.clear()
        if not twin.methods:
            yield
            return
        with accelerate(self.pipeline, twin, calibration=self.job):
            yield

    def _own(self) -> Contender:
        name = type(self.pipeline.scheduler).__name__.removesuffix("Scheduler")
        return Contender(f"stock {name}, {self.job.steps} steps", Recipe.empty, self.job)

    def _fast(self) -> tuple[Contender, ...]:
        """The stock pipeline under diffusers' DPM-Solver++ 2M; nobody, for flow models: their own sampler is the stock choice."""
        if self.view.noise.kind != "vp" or self.view.name == "DDIMPipeline":  # which passes eta to every scheduler
            return ()
        from diffusers import DPMSolverMultistepScheduler

        scheduler = DPMSolverMultistepScheduler.from_config(self.pipeline.scheduler.config, timestep_spacing="trailing")
        label = f"stock DPM++ 2M, {FAST_STEPS} steps"
        with Handle.building(self.pipeline, label) as handle:
            handle.swap_item(vars(self.pipeline), "scheduler", scheduler)
        handle.suspend()
        return (Contender(label, Recipe.empty, replace(self.job, steps=FAST_STEPS), handle),)

    def contender(self, recipe: Recipe) -> Contender:
        """Somebody who takes part with `recipe`, suspended; whoever asks for one who is no candidate removes the handle."""
        # Knots known by name are written out: a record must mean the same tomorrow, and elsewhere.
        recipe = Recipe(method.on(self.view) if isinstance(method, Solver) else method for method in recipe.methods)
        self.clear()
        handle = accelerate(self.pipeline, recipe, calibration=self.job)
        handle.suspend()
        return Contender(str(recipe), recipe, self.job, handle)
