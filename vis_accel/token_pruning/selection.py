"""Trained selectors at work: before a stage's block, patches are ranked by the probability to stay, and the best are gathered.

The form for inference, with fixed counts; `masked` has the one for training, and both give the same.

Shapes   B images, P patches, M of them dropped, C channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel import addons
from vis_accel.addons import Addon
from vis_accel.errors import DataError, NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import Context, option
from vis_accel.token_pruning.predictor import selectors_from
from vis_accel.token_pruning.ranking import RankingMethod, best, keep_patches
from vis_accel.token_pruning.tome import placed
from vis_accel.vit_models.stream import Step, Tokens, rope_among, run_blocks, take
from vis_accel.vit_models.view import BlockView, ViTView

__all__ = ["SelectingMethod", "gathering", "packaged"]


def packaged(tokens: Tensor, scores: Tensor) -> Tensor:
    """sum_i s_i x_i / sum_i s_i of tokens B x M x C with scores B x M: B x 1 x C. Where all scores are 0, the plain mean."""
    scores = torch.where(scores.sum(dim=1, keepdim=True) > 0, scores, 1.0)
    weights = scores / scores.sum(dim=1, keepdim=True)
    return weights[:, None].to(tokens.dtype) @ tokens


def gathering(view: ViTView, selectors: Sequence[nn.Module], kept: Mapping[int, int], *, package: bool) -> dict[int, Step]:
    """The steps of the stages.

    Args:
        view: of the model.
        selectors: one a stage.
        kept: how many patches stay, by stage (block, 0-based).
        package: whether the others become one package token, which is a patch like others from then on.
    """
    pairs = zip(kept.items(), selectors, strict=True)
    return {block: partial(_gather, selector, count, view.prefix, package) for (block, count), selector in pairs}


def _gather(selector: nn.Module, count: int, prefix: int, package: bool, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Tokens:
    if count < tokens.x.shape[1] - prefix:
        tokens = placed(tokens, prefix, rope)
        patches = tokens.x[:, prefix:]
        scores = selector(patches)[..., 0].exp()
        # what is not a number ranks first: a broken image shows in its output
        index, dropped = best(torch.where(scores.isnan(), torch.inf, scores), count)
        extra = packaged(take(patches, dropped), take(scores, dropped)) if package else None
        rope = None if rope is None else rope_among(rope, index)
        tokens = keep_patches(tokens, index, prefix, extra)
    return tokens._replace(x=block.feed(block.attention(tokens.x, rope=rope).x))


@dataclass(frozen=True, kw_only=True)
class SelectingMethod(RankingMethod):
    """Keeps the patches that trained selectors choose, at a few stages."""

    weights: str | None = option(None, "the name of trained selectors that ship, or a file of token_pruning/train.py")

    @abstractmethod
    def kept(self, view: ViTView) -> dict[int, int]:
        """How many patches stay, by stage; at a stage where all do, their number."""

    @property
    def selects(self) -> bool:
        """Whether selectors choose, with these options."""
        return self.keep < 1

    def check_target(self, view: Any) -> None:
        super().check_target(view)
        if self.selects:
            self.addon(view)

    def addon(self, view: ViTView) -> Addon:
        """The trained parameters for this model and these stages.

        Raises:
            NotApplicableError: there are none, or they were trained for other stages.
            DataError: they do not say for which.
        """
        found, stages = addons.find(self.name, view.model, self.weights), self.blocks(view)
        theirs = found.facts.get("stages")
        if not isinstance(theirs, list):
            raise DataError(f"{found.name} does not say for which stages it was trained.")
        if tuple(theirs) != stages:
            raise NotApplicableError(
                f"{self.name}: {found.name} was trained for the stages {tuple(theirs)}, not for {stages}.", hint=f"stages={tuple(theirs)}"
            )
        return found

    def selectors(self, view: ViTView, addon: Addon) -> list[nn.Module]:
        """The selectors, one a stage, in the dtype and on the device of the model."""
        some = next(iter(view.model.parameters()))
        found = selectors_from(addon.tensors, self.name, view.width, view.blocks[0].heads, len(self.blocks(view)))
        return [selector.to(some.device, some.dtype) for selector in found]

    def apply(self, target: Any, context: Context) -> Handle:
        """Swaps the parameters that were trained with the selectors, and wraps the blocks from the first stage on."""
        if not self.selects:
            return super().apply(target, context)
        view: ViTView = context.view
        addon = self.addon(view)
        own = {name.removeprefix("model."): tensor for name, tensor in addon.tensors.items() if name.startswith("model.")}
        with Handle.building(target, str(self)) as handle:
            addons.swap_parameters(handle, target, own)
            run_blocks(handle, view, gathering(view, self.selectors(view, addon), self.kept(view), package=bool(self.extra)))
        return handle
