"""One row an image where a guided pipeline asks for two: a student that takes the guidance scale.

Paper    Meng et al. 2023, arXiv:2210.03142, first stage. Trained by `vis-accel distill --method guidance`.
Weights  what the student's differ by from the model's, found by the model's hash, and a small network from the scale to what is added to
         the biases of the time embeddings (`vis_accel.distillation.guidance`): computed once, when the method is applied.
Scale    an option, as the pipeline's call tells it to nobody before its first step; a call with another scale is refused.
Cost     half the rows of every call. The sampler stays free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vis_accel import addons
from vis_accel.errors import NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.students.halves import OneRow
from vis_accel.students.scaled import PREFIX, biases

__all__ = ["GuidanceDistilled"]

_HOW = "train one: vis-accel distill --model MODEL --method guidance --output DIR; then {}(weights='DIR/addon.safetensors')"


@dataclass(frozen=True, kw_only=True)
class GuidanceDistilled(Method):
    """Puts a guidance student on a pipeline."""

    name: ClassVar[str] = "guidance-distilled"
    family: ClassVar[Family] = "weights"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("weights", "replaces"), Touch("unconditional half", "replaces"))

    scale: float | None = option(None, "the guidance of the calls; None: what the model's card has", above=1)
    weights: str | None = option(None, "the name of a student that ships, or a file of vis-accel distill")

    def check_target(self, view: Any) -> None:
        if not hasattr(view, "install_scheduler"):
            raise NotApplicableError(f"{self.name} is a student of a diffusion pipeline, and the target is none.")
        self._scale(self._found(view))

    def describe(self, view: Any) -> list[str]:
        found = self._found(view)
        low, high = found.facts["low"], found.facts["high"]
        return [f"student {found.name}, guidance {self._scale(found):g} of {low:g} .. {high:g}"]

    def apply(self, target: Any, context: Context) -> Handle:
        """Swaps the parameters and halves the calls."""
        view = context.view
        found = self._found(view)
        scale = self._scale(found)
        network: Any = view.denoiser
        own = {name.removeprefix(PREFIX): value for name, value in found.tensors.items() if name.startswith(PREFIX)}
        with Handle.building(target, str(self)) as handle:
            addons.swap_parameters(handle, network, {name: value for name, value in found.tensors.items() if not name.startswith(PREFIX)})
            added = biases(network, own, scale).items()
            addons.swap_parameters(handle, network, {name: network.get_parameter(name).detach().cpu() + bias for name, bias in added})
            context.run.watch(handle)
            OneRow(target, context.run, scale, str(self)).install(handle, network)
        return handle

    def _found(self, view: Any) -> addons.Addon:
        return addons.find(self.name, view.denoiser, self.weights, how=_HOW.format(self.name))

    def _scale(self, found: addons.Addon) -> float:
        """The scale the student is asked for.

        Raises:
            UsageError: outside the range it was trained for.
        """
        low, high = float(found.facts["low"]), float(found.facts["high"])
        scale = float(found.facts["guidance"]) if self.scale is None else self.scale
        if not low <= scale <= high:
            raise self.refused("scale", f"must be {low:g} .. {high:g}, which {found.name} was trained for")
        return scale
