"""Early exit: images that a classifier in the middle is sure of leave there.

Paper    Teerapittayanon et al. 2016 (BranchyNet), arXiv:1709.01686; on vision transformers Bakhtiarnia et al. 2021, arXiv:2106.15183, and
         Xu et al. 2023 (LGViT), arXiv:2308.00255. Thresholds by risk control: `calibrate.py`.
Needs    trained heads, and with them the weights they were trained with: an add-on (`vit_models/early_exit.py`). It holds the logits of the
         calibration images too, so thresholds for any epsilon are found when the method is applied.
Cost     a head at each exit, one wait for the device, one gather of the survivors.
Not      in training: there nobody leaves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vis_accel import addons
from vis_accel.early_exit import calibrate, criteria
from vis_accel.early_exit.exits import Exiting, Exits, Histogram, tokens_of
from vis_accel.early_exit.heads import ON_GRID, Head, build_head
from vis_accel.errors import DataError, NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.runtime.compile import own_code
from vis_accel.token_pruning.base import vit_view
from vis_accel.vit_models.view import ViTView

__all__ = ["EarlyExit"]

NEVER = "never"


@dataclass(frozen=True, kw_only=True)
class EarlyExit(Method):
    """Lets images leave after a few blocks."""

    name: ClassVar[str] = "early-exit"
    family: ClassVar[Family] = "depth"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("blocks", "wraps"), Touch("weights", "replaces"))
    breaks: ClassVar[frozenset[str]] = frozenset({"static forward"})

    epsilon: float = option(0.01, "the accuracy that may be lost, where thresholds are risk-controlled", above=0, below=1)
    delta: float = option(0.05, "the probability with which more may be lost", above=0, below=1)
    criterion: str = option("confidence", "what makes an image sure", choices=criteria.CRITERIA)
    threshold: float | tuple[float, ...] | str | None = option(
        None, "from which score an image leaves, one number or one for each exit; None: risk-controlled; 'never'", choices=(NEVER,)
    )
    patience: int = option(2, "how many exits in a row must agree, for that criterion", low=1)
    share: float = option(0.3, "the share of the images reaching an exit that leave by it, for the criterion budget", above=0, below=1)
    compile: bool = option(False, "whether segments are compiled, each for a few sizes of the batch")
    weights: str | None = option(None, "trained heads: the name of what ships, or a file")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.threshold is not None and self.threshold != NEVER and self.criterion in ("patience", "budget"):
            raise self.refused("threshold", f"does not go with the criterion {self.criterion}, which has none")

    def check_target(self, view: Any) -> None:
        found = vit_view(self, view)
        found.require_blocks(self.name)
        if found.rotary and getattr(found.model, "rope_mixed", False):
            raise NotApplicableError(f"{self.name} runs several blocks at once, and each block of this model has its own rotary embedding.")
        self._resolved(found)

    def describe(self, view: Any) -> list[str]:
        exits, thresholds, policy, addon = self._resolved(vit_view(self, view))
        places = ", ".join(f"block {exit_.block} ({exit_.design})" for exit_ in exits)
        shown = ["never" if value is None else f"{value:.4f}" for value in thresholds]
        lines = [f"exits after {places}; {self.criterion}, thresholds {', '.join(shown)}; heads {addon.name}"]
        if policy is not None:
            depth = [*(exit_.block + 1 for exit_ in exits), len(view.blocks)]
            mean = sum(share * blocks for share, blocks in zip(policy.histogram, depth, strict=True))
            shares = ", ".join(f"{share:.1%}" for share in policy.histogram)
            n = addon.tensors["calibration.labels"].numel()
            lines.append(
                f"on {n:,} calibration images: {policy.risk:.2%} lost to exits, at most {policy.bound:.2%} with probability "
                f"{1 - self.delta:.0%}; leaving by each exit, the full model last: {shares}; {mean:.1f} of {depth[-1]} blocks in the mean"
            )
        return lines

    def apply(self, target: Any, context: Context) -> Handle:
        """Puts the heads' weights on, and wraps blocks, norm and head."""
        view = context.view
        exits, thresholds, policy, addon = self._resolved(view)
        reduced = any(method.family == "tokens" for method in context.recipe.methods)
        if reduced and (grid := next((exit_.design for exit_ in exits if exit_.design in ON_GRID), None)):
            raise NotApplicableError(
                f"The exit head {grid!r} needs every patch in its place, and the recipe drops or merges tokens.",
                hint="heads of the design mlp read the class token alone",
            )
        like = next(target.parameters())
        heads = [exit_.build(view, addon).to(like.device, like.dtype).eval() for exit_ in exits]
        histogram = Histogram(len(exits))
        runner = Exits(heads, thresholds, criterion=self.criterion, patience=self.patience, buckets=self.compile, histogram=histogram)
        with Handle.building(target, str(self)) as handle:
            own = {name.removeprefix("model."): value for name, value in addon.tensors.items() if name.startswith("model.")}
            addons.swap_parameters(handle, target, own)
            if self.threshold != NEVER:
                _wrap(handle, view, [exit_.block for exit_ in exits], runner, compiled=self.compile)
            handle.reports(lambda: _report(histogram, policy))
        return handle

    def _heads(self, view: ViTView) -> addons.Addon:
        try:
            return addons.find(self.name, view.model, self.weights)
        except NotApplicableError as error:
            hint = "train heads: python vit_models/early_exit.py train --data DIR; then early-exit(weights='runs/train/addon.safetensors')"
            raise NotApplicableError(error.message, hint=hint) from error

    def _resolved(self, view: ViTView) -> tuple[list[_Exit], list[float | None], calibrate.Policy | None, addons.Addon]:
        """Exits, thresholds, what calibration says of them, and the add-on."""
        addon = self._heads(view)
        exits = [_Exit(int(block), str(design)) for block, design in addon.facts.get("exits", [])]
        depth = len(view.blocks)
        places = [exit_.block for exit_ in exits]
        if not exits or places != sorted(set(places)) or places[0] < 0 or places[-1] >= depth - 1:
            raise DataError(f"{addon.name} has exits after the blocks {places}; they must be some of 0 to {depth - 2}, rising.")
        if isinstance(self.threshold, tuple) and len(self.threshold) != len(exits):
            raise self.refused("threshold", f"must be one number or {len(exits)}, one for each exit")
        if self.criterion == "patience" and self.patience > len(exits):
            raise self.refused("patience", f"must be at most {len(exits)}, the number of exits, or nobody leaves")
        if isinstance(self.threshold, tuple):
            return exits, list(self.threshold), None, addon
        if isinstance(self.threshold, float):
            return exits, [self.threshold] * len(exits), None, addon
        if self.threshold == NEVER or self.criterion == "patience":
            return exits, [None] * len(exits), None, addon
        logits, labels = addon.tensors["calibration.logits"].float(), addon.tensors["calibration.labels"].long()
        if self.criterion == "budget":
            return exits, list(calibrate.quantile_thresholds(logits[:-1], self.share)), None, addon
        policy = calibrate.risk_controlled(
            logits[:-1], logits[-1], labels, criterion=self.criterion, epsilon=self.epsilon, delta=self.delta
        )
        return exits, [policy.threshold] * len(exits), policy, addon


@dataclass(frozen=True)
class _Exit:
    """An exit after `block`, with a head of this design."""

    block: int
    design: str

    def build(self, view: ViTView, addon: addons.Addon) -> Head:
        """Its head, trained."""
        head = build_head(self.design, width=view.width, classes=view.classes, grid=view.grid, prefix=view.prefix)
        start = f"head.{self.block}."
        weights = {name.removeprefix(start): value.float() for name, value in addon.tensors.items() if name.startswith(start)}
        try:
            head.load_state_dict(weights)
        except RuntimeError as error:
            raise DataError(f"{addon.name} does not fit: its head after block {self.block} is for another model: {error}") from error
        return head


def _wrap(handle: Handle, view: ViTView, places: Sequence[int], runner: Exits, *, compiled: bool) -> None:
    """Lets the first block of each segment run it, and norm and head finish."""
    starts, ends = [0, *(place + 1 for place in places)], [*places, len(view.blocks) - 1]
    for index, (start, end) in enumerate(zip(starts, ends, strict=True)):
        head = runner.heads[index] if index < len(places) else None
        forwards = [view.blocks[block].module.forward for block in range(start, end + 1)]
        segment = _Segment(index, forwards, head, runner, view.blocks[start].module, compiled)
        handle.swap_forward(view.blocks[start].module, segment)
        for block in range(start + 1, end + 1):
            handle.swap_forward(view.blocks[block].module, _hand_on)
    model = view.model
    if compiled:
        handle.swap_forward(model.patch_embed, torch.compile(own_code(model.patch_embed.forward), dynamic=False))
    handle.swap_forward(model.norm, _Normed(model.norm.forward))
    handle.swap_item(vars(model), "forward_head", _Answered(model.forward_head, runner))
    handle.swap_item(vars(model), "forward_intermediates", _no_features)


class _Normed:
    """The last norm, of those still here."""

    def __init__(self, norm: Callable[[Any], Any]) -> None:
        self.norm = norm

    def __call__(self, x: Any) -> Any:
        if not isinstance(x, Exiting):
            return self.norm(x)
        return x._replace(inner=self.norm(x.inner)) if len(x.rows) else x


class _Answered:
    """The model's head for those still here, and the answers of all."""

    def __init__(self, head: Callable[..., Tensor], runner: Exits) -> None:
        self.head, self.runner = head, runner

    def __call__(self, x: Any, pre_logits: bool = False) -> Tensor:
        if not isinstance(x, Exiting):
            return self.head(x, pre_logits=pre_logits)
        if pre_logits:
            raise NotApplicableError("Features of the last layer do not exist for images that left early.", hint="suspend the handle")
        return self.runner.finish(x, self.head)


class _Segment:
    """The blocks between two exits, run in one go. A copy of the model runs its own blocks.

    Args:
        index: of the segment, and of the exit at its end.
        forwards: of its blocks.
        head: of that exit; None for the last segment.
        runner: decides.
        first: its first block, which knows whether it is being trained.
        compiled: compile the blocks and the head, for each shape.
    """

    def __init__(
        self,
        index: int,
        forwards: list[Callable[..., Any]],
        head: Callable[[Tensor], Tensor] | None,
        runner: Exits,
        first: Any,
        compiled: bool,
    ) -> None:
        self.index, self.forwards, self.head, self.runner, self.first, self.compiled = index, forwards, head, runner, first, compiled
        self.run: Callable[..., Any] = torch.compile(own_code(self.blocks), dynamic=False) if compiled else self.blocks

    def __deepcopy__(self, memo: dict[int, Any]) -> _Segment:
        forwards, head, runner, first = copy.deepcopy((self.forwards, self.head, self.runner, self.first), memo)
        return _Segment(self.index, forwards, head, runner, first, self.compiled)

    def blocks(self, x: Any, places: dict[str, Any]) -> tuple[Any, Tensor | None, Tensor | None]:
        """Tokens after the blocks, the head's logits, and who is sure by them.

        All in one graph: at batch 1 every operation outside of it is felt.
        """
        for forward in self.forwards:
            x = forward(x, **places)
        if self.head is None:
            return x, None, None
        logits = self.head(tokens_of(x))
        return x, logits, self.runner.sure_alone(self.index, logits)

    def __call__(self, x: Any, rope: Tensor | None = None, attn_mask: Any = None, is_causal: bool = False) -> Any:
        if attn_mask is not None or is_causal:
            raise NotApplicableError("A mask was given to a model whose images leave early.", hint="remove the recipe's handle")
        before = x if isinstance(x, Exiting) else None
        if before is not None and len(before.rows) == 0:
            return before
        places = {} if rope is None else {"rope": rope}
        inner, logits, alone = self.run(x if before is None else before.inner, places)
        if self.first.training and before is None:
            return inner
        if logits is None:
            return inner if before is None else before._replace(inner=inner)
        return self.runner.leave(self.index, inner, logits, alone, before)


def _hand_on(x: Any, *args: Any, **options: Any) -> Any:
    return x


def _no_features(*args: Any, **options: Any) -> Any:
    raise NotApplicableError("Intermediate features do not exist for images that left early.", hint="suspend or remove the handle")


def _report(histogram: Histogram, policy: calibrate.Policy | None) -> dict[str, Any]:
    counts = histogram.counts
    total = sum(counts)
    found: dict[str, Any] = {"exits": counts}
    if policy is not None and total:
        moved = max(abs(count / total - share) for count, share in zip(counts, policy.histogram, strict=True))
        if moved > 0.10:
            found["warning"] = f"exits differ by {moved:.0%} from the calibration images: the promise may not hold for these"
    return found
