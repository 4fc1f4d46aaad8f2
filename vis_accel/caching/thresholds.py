"""The threshold of `firstblock` that computes a wanted number of calls in full, from one run without a cache.

The run gives the first block's residual of every call; its change between any two calls decides what `firstblock` would do under any
threshold. Reused calls bend the path a little, so that the number found in a run may differ by a few: run it and look at the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vis_accel.caching.firstblock import change
from vis_accel.caching.gate import hidden_in
from vis_accel.caching.schedule import LAST
from vis_accel.caching.transformers import blocks_of, stream
from vis_accel.errors import RunError, UsageError

__all__ = ["first_changes", "full_calls", "threshold_for"]


def first_changes(network: torch.nn.Module, run: Callable[[], object]) -> list[list[float]]:
    """changes[i][j], j >= i: how far the first block's residual of call j is from that of call i, while `run` makes one batch of images.

    Args:
        network: a transformer that `firstblock` knows, without a cache.
        run: calls the pipeline once; all residuals are kept meanwhile.

    Raises:
        RunError: the batch changed within the run.
    """
    residuals: list[Tensor] = []
    hook = blocks_of(network)[0].register_forward_hook(
        lambda module, args, kwargs, output: residuals.append(stream(output) - hidden_in(args, kwargs)), with_kwargs=True
    )
    try:
        run()
    finally:
        hook.remove()
    if len({residual.shape for residual in residuals}) != 1:
        raise RunError("The run made no calls, or calls of several shapes: there is nothing to compare.")
    return [[change(now, before) if j >= i else 0.0 for j, now in enumerate(residuals)] for i, before in enumerate(residuals)]


def full_calls(changes: Sequence[Sequence[float]], threshold: float, most: int) -> list[int]:
    """The calls that `firstblock(threshold, most)` would compute in full."""
    full = [0]
    for call in range(1, len(changes)):
        forced = call >= len(changes) - LAST or call - full[-1] > most
        if forced or not changes[full[-1]][call] < threshold:
            full.append(call)
    return full


def threshold_for(changes: Sequence[Sequence[float]], full: int, most: int) -> float:
    """The smallest threshold (to four digits, below 1) with which at most `full` calls are computed in full.

    Raises:
        UsageError: no threshold leaves so few: `most` calls in a row at most reuse.
    """
    values = sorted({change for row in changes for change in row if 0 < change < 1})
    for threshold in (min(round(value + 1e-4, 4), 0.9999) for value in values):
        if len(full_calls(changes, threshold, most)) <= full:
            return threshold
    least = min((len(full_calls(changes, threshold, most)) for threshold in (*values, 0.9999)), default=len(changes))
    raise UsageError(f"With at most {most} reused calls in a row, no threshold leaves {full} full calls; {least} is the least.")
