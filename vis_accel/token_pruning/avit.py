"""A-ViT: every token halts when it has said enough; it needs no parameters beside the model's own, but a training.

Paper    Yin et al. 2022, "A-ViT: Adaptive Tokens for Efficient Vision Transformer", arXiv:2112.07658. The score is read from channel 0 of
         the token (equation and law in `halting`); the model is trained with a cost per block run and a prior on where tokens halt.
Cost     a sigmoid a token. Really faster, unlike the authors' code, which masks: halted patches are dropped (the rest of a batch is padded
         to its longest image), and an image whose class token has halted leaves the batch, since nothing after can change its output.
Departs  only tokens that the head reads have an output, so models whose head pools patches are refused.
Not      a method for any model off the shelf: channel 0 means nothing before training. No static shapes, no export.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from vis_accel import addons
from vis_accel.addons import Addon
from vis_accel.errors import DataError, NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import Context, Touch, option
from vis_accel.token_pruning.base import TokenMethod, vit_view
from vis_accel.token_pruning.halting import Halting
from vis_accel.token_pruning.tally import Tally
from vis_accel.vit_models.stream import run_blocks
from vis_accel.vit_models.view import ViTView

__all__ = ["Avit"]


@dataclass(frozen=True, kw_only=True)
class Avit(TokenMethod):
    """Drops each token where it has halted."""

    name: ClassVar[str] = "avit"
    needs: ClassVar[frozenset[str]] = frozenset({"all tokens", "class token"})
    breaks: ClassVar[frozenset[str]] = frozenset({"grid", "static forward"})
    touches: ClassVar[tuple[Touch, ...]] = (Touch("tokens", "replaces"), Touch("weights", "replaces"), Touch("last block", "replaces"))

    epsilon: float = option(0.01, "how far below 1 the sum of a token's scores may be when it halts", above=0, below=1)
    weights: str | None = option(None, "the name of trained parameters that ship, or a file of token_pruning/train.py")

    def check_target(self, view: Any) -> None:
        found = vit_view(self, view)
        found.require_blocks(self.name)
        if not found.readers:
            raise NotApplicableError(f"{self.name} needs a head that reads the class token; this one pools patches ({found.pooling}).")
        self.addon(found)

    def addon(self, view: ViTView) -> Addon:
        """The parameters trained for this model.

        Raises:
            NotApplicableError: there are none.
            DataError: they do not say with which gamma and beta they were trained.
        """
        found = addons.find(self.name, view.model, self.weights)
        if not all(isinstance(found.facts.get(name), (int, float)) for name in ("gamma", "beta")):
            raise DataError(f"{found.name} does not say with which gamma and beta it was trained.")
        return found

    def describe(self, view: ViTView) -> list[str]:
        facts = self.addon(view).facts
        line = f"tokens halt after one of the blocks 0 to {len(view.blocks) - 1}; where, depends on the image"
        return [line + (f"; {facts['mean_depth']:.1f} blocks a token in the mean over test images" if "mean_depth" in facts else "")]

    def apply(self, target: Any, context: Context) -> Handle:
        """Swaps the parameters and wraps all blocks."""
        view: ViTView = context.view
        addon = self.addon(view)
        gamma, beta = float(addon.facts["gamma"]), float(addon.facts["beta"])
        tally = Tally()
        step = Halting(view.prefix, view.readers, len(view.blocks), gamma, beta, self.epsilon, tally=tally)
        with Handle.building(target, str(self)) as handle:
            addons.swap_parameters(handle, target, addon.tensors)
            run_blocks(handle, view, {block.index: step for block in view.blocks})
            handle.reports(tally.take)
        return handle
