"""Weights fine-tuned for another method: a model learns to live with dropped or merged tokens, and gives back most of what they cost.

Source   every paper on token reduction has its fine-tuned rows (Bolya et al. 2023, section 4.2; Liang et al. 2022, arXiv:2202.07800,
         section 4: 30 epochs at a small learning rate, tokens dropped during training too). Trained by `token_pruning/train.py`.
Cost     none at run time: the parameters change, the computation does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vis_accel import addons
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.token_pruning.base import vit_view

__all__ = ["Tuned"]


@dataclass(frozen=True, kw_only=True)
class Tuned(Method):
    """Puts fine-tuned weights in the place of the model's own."""

    name: ClassVar[str] = "tuned"
    family: ClassVar[Family] = "weights"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("weights", "replaces"),)

    weights: str | None = option(None, "the name of fine-tuned weights that ship, or a file of token_pruning/train.py")

    def check_target(self, view: Any) -> None:
        vit_view(self, view)
        addons.find(self.name, view.model, self.weights)

    def describe(self, view: Any) -> list[str]:
        found = addons.find(self.name, view.model, self.weights)
        return [f"weights {found.name}, fine-tuned for {found.facts.get('recipe')}"]

    def apply(self, target: Any, context: Context) -> Handle:
        """Swaps the parameters."""
        found = addons.find(self.name, target, self.weights)
        with Handle.building(target, str(self)) as handle:
            addons.swap_parameters(handle, target, found.tensors)
        return handle
