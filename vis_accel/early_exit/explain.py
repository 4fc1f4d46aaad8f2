"""Why an image left where it left: what each exit it reached made of it.

with accelerate(model, "early-exit"):
    for seen in explain(model, image):
        ...                             block 3, score 0.97, 0.93 is enough, left
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vis_accel.early_exit.criteria import score
from vis_accel.early_exit.exits import Exiting, Exits
from vis_accel.errors import NoEffectError, UsageError

__all__ = ["Seen", "explain"]


class Seen(NamedTuple):
    """One exit that the image reached.

    Attributes:
        block: after which it lies, 0-based.
        score: how sure it was, by the criterion; for patience, how many exits in a row agreed.
        threshold: from which score the image leaves; None: nobody leaves here.
        left: whether it did.
    """

    block: int
    score: float
    threshold: float | None
    left: bool


@torch.no_grad()
def explain(model: nn.Module, image: Tensor) -> list[Seen]:
    """Runs `model`, which is under early-exit, on one normalised image (1 x 3 x H x W) and lists the exits it reached.

    Raises:
        NoEffectError: the model has no exits.
        UsageError: more than one image.
    """
    if len(image) != 1:
        raise UsageError(f"One image is explained at a time; got {len(image)}.")
    starts, runner = _exits(model)
    seen: list[Seen] = []
    leave = runner.leave

    def watched(index: int, inner: Any, logits: Tensor, alone: Tensor | None, before: Exiting | None) -> Exiting:
        after = leave(index, inner, logits, alone, before)
        patient = runner.criterion == "patience"
        found = float(after.streak[0]) if patient else float(score(logits, runner.criterion)[0])
        threshold = float(runner.patience) if patient else runner.thresholds[index]
        seen.append(Seen(starts[index + 1] - 1, found, threshold, left=len(after.rows) == 0))
        return after

    vars(runner)["leave"] = watched
    try:
        model(image)
    finally:
        del vars(runner)["leave"]
    return seen


def _exits(model: nn.Module) -> tuple[list[int], Exits]:
    """The first block of each segment, and who decides."""
    blocks: list[Any] = list(model.blocks)  # type: ignore[arg-type]
    runners = {index: getattr(vars(block).get("forward"), "runner", None) for index, block in enumerate(blocks)}
    starts = [index for index, runner in runners.items() if isinstance(runner, Exits)]
    if not starts:
        raise NoEffectError("This model has no exits.", hint="accelerate(model, 'early-exit')")
    runner = runners[starts[0]]
    assert isinstance(runner, Exits)  # noqa: S101 - _exits just chose it by its type
    return starts, runner
