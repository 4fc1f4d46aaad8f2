"""A few-step student in the place of the pipeline's network, with the sampler it was trained for.

Source   Song et al. 2023, arXiv:2303.01469; Luo et al. 2023, arXiv:2310.04378. Trained by `vis-accel distill --method consistency`, or
         `lcm-lora`, `progressive` (Salimans and Ho 2022, arXiv:2202.00512), `segments` or `reflow` (Liu et al. 2022, arXiv:2209.03003).
Weights  what the student's differ by from the model's, found by the model's hash (`vis_accel.addons`).
Sampler  is the student's: of a consistency student its multi-step rule, any number of steps up to its knots; of a progressive one, or one
         of segments, DDIM over exactly the steps it was trained for, with fresh noise or without as it was trained; of a reflowed one DDIM
         over any number of steps. Another sampler beside it is a conflict.
Guidance is in the weights: a call evaluates one row an image where the pipeline stacks two, and a call with another scale is refused.
Cost     `steps` calls, a row each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from vis_accel import addons
from vis_accel.distillation.consistency import grid_times, inference_indices
from vis_accel.errors import DataError, NotApplicableError, UsageError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.samplers.consistency import Consistency
from vis_accel.samplers.ddim import Ddim
from vis_accel.samplers.noise import NoiseModel
from vis_accel.samplers.solver import Solver
from vis_accel.students.halves import OneRow

__all__ = ["Distilled"]

_HOW = "train one: vis-accel distill --model MODEL --method consistency --output DIR; then {}(weights='DIR/addon.safetensors')"


@dataclass(frozen=True, kw_only=True)
class Distilled(Method):
    """Puts a few-step student on a pipeline."""

    name: ClassVar[str] = "distilled"
    family: ClassVar[Family] = "weights"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (
        Touch("weights", "replaces"),
        Touch("scheduler", "replaces"),
        Touch("unconditional half", "replaces"),
    )

    steps: int = option(4, "the number of calls", low=1)
    fresh: float = option(1.0, "the share of fresh noise between the steps of a consistency student", low=0, high=1)
    weights: str | None = option(None, "the name of a student that ships, or a file of vis-accel distill")

    def check_target(self, view: Any) -> None:
        if not hasattr(view, "install_scheduler"):
            raise NotApplicableError(f"{self.name} is a student of a diffusion pipeline, and the target is none.")
        self._solver(self._found(view), view.noise)

    def describe(self, view: Any) -> list[str]:
        found = self._found(view)
        guided = found.facts.get("guidance")
        return [f"student {found.name}, {found.facts.get('student')}" + (f", guidance {guided:g} in its weights" if guided else "")]

    def apply(self, target: Any, context: Context) -> Handle:
        """Swaps the parameters and the sampler, and halves guided calls."""
        from vis_accel.samplers.scheduler import SolverScheduler

        view = context.view
        found = self._found(view)
        solver, noise = self._solver(found, view.noise), view.noise
        if prediction := found.facts.get("prediction"):  # a student of a network that predicted the noise may predict v
            noise = replace(noise, prediction=prediction)
        if found.facts.get("student") == "reflow":  # a clipped image would bend its paths
            noise = replace(noise, clip=None)
        with Handle.building(target, str(self)) as handle:
            addons.swap_parameters(handle, view.denoiser, found.tensors)
            view.install_scheduler(handle, SolverScheduler(solver, noise, target.scheduler, target))
            if found.facts.get("guidance") is not None:
                OneRow(target, context.run, float(found.facts["guidance"]), str(self)).install(handle, view.denoiser)
        return handle

    def _found(self, view: Any) -> addons.Addon:
        return addons.find(self.name, view.denoiser, self.weights, how=_HOW.format(self.name))

    def _solver(self, found: addons.Addon, noise: NoiseModel) -> Solver:
        """The sampler of the student.

        Raises:
            UsageError: steps it was not trained for.
            DataError: a student of a kind this version does not know.
        """
        kind = found.facts.get("student")
        if kind == "progressive":
            trained = int(found.facts["steps"])
            if self.steps != trained:
                reason = f"must be {trained}, which the student {found.name} was trained for: its step is that long and no other"
                raise self.refused("steps", reason)
            if self.fresh != 1:
                raise self.refused("fresh", f"belongs to consistency students; {found.name} is a progressive one")
            return Ddim(steps=trained, schedule="trailing", eta=float(found.facts.get("eta", 0.0)))
        if kind == "reflow":
            if self.fresh != 1:
                raise self.refused("fresh", f"belongs to consistency students; {found.name} is a reflowed one")
            return Ddim(steps=self.steps, schedule="trailing")
        if kind != "consistency":
            raise DataError(f"{found.name} is a student of the kind {kind}, which this version does not know.", hint="a newer vis-accel")
        return self._consistency(found, noise)

    def _consistency(self, found: addons.Addon, noise: NoiseModel) -> Consistency:
        knots = int(found.facts["knots"])
        try:
            places = inference_indices(self.steps, knots)
        except UsageError as error:
            raise self.refused("steps", f"must be 1 .. {knots}, the knots that {found.name} was trained at") from error
        sigmas = [noise.sigma_at(float(time)) for time in grid_times(knots, noise.times)]
        options = {"boundary": "lcm"} if found.facts.get("boundary", "lcm") == "lcm" else {"boundary": "edm", "lowest": sigmas[0]}
        return Consistency(schedule=tuple(sigmas[place] for place in places), fresh=self.fresh, **options)
