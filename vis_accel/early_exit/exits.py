"""How images leave: the blocks are run in segments, and after each segment only those go on that are not sure yet.

timm calls block after block; the first block of a segment runs the whole segment and the others hand on what they are given. What travels
between segments is `Exiting`: the tokens of the images still here, which images those are, and the answers given so far. So the state
belongs to one forward, as in `vit_models.stream`, whose `Tokens` it may carry.

Compaction   survivors alone go on: without it a batch takes as long as its slowest image. One wait for the device at each exit.
Buckets      a compiled segment wants few shapes: survivors are filled up to the next of B, 3B/4, B/2, B/4, 8, 1 by repeating one of them.
Nobody left  later segments are not run at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vis_accel.early_exit.criteria import agreeing, score
from vis_accel.errors import NotApplicableError
from vis_accel.vit_models.stream import Tokens

__all__ = ["Exiting", "Exits", "Histogram", "bucket"]


class Exiting(NamedTuple):
    """A batch some of whose images may have left.

    Attributes:
        inner: the tokens of those still here: a tensor or `Tokens`.
        rows: which images of the batch they are (int64); -1 for one that only fills up a bucket.
        logits: the answers, batch x classes; zeros for who is still here.
        classes, streak: of each image still here, what the last exit said and how many in a row said it.
        batch: number of images at the start.
    """

    inner: Any
    rows: Tensor
    logits: Tensor
    classes: Tensor
    streak: Tensor
    batch: int


class Histogram:
    """Counts who left by which exit, in all threads.

    Args:
        exits: how many, the full model not counted.
    """

    def __init__(self, exits: int) -> None:
        self._counts = [0] * (exits + 1)
        self._lock = threading.Lock()

    def add(self, index: int, count: int) -> None:
        """`count` images left by exit `index`; the last index is the full model."""
        with self._lock:
            self._counts[index] += count

    @property
    def counts(self) -> tuple[int, ...]:
        """Images by exit, the full model last."""
        with self._lock:
            return tuple(self._counts)


class Exits:
    """Runs segments and lets images leave between them.

    Args:
        heads: for each exit, tokens -> logits.
        thresholds: of each exit; None: nobody leaves by it.
        criterion: one of `criteria.CRITERIA`.
        patience: for that criterion: exits in a row that must agree.
        buckets: fill survivors up to few sizes.
        histogram: counts who left where.
    """

    def __init__(
        self,
        heads: Sequence[Callable[[Tensor], Tensor]],
        thresholds: Sequence[float | None],
        *,
        criterion: str,
        patience: int,
        buckets: bool,
        histogram: Histogram,
    ) -> None:
        self.heads, self.thresholds, self.criterion = heads, thresholds, criterion
        self.patience, self.buckets, self.histogram = patience, buckets, histogram

    def leave(self, index: int, inner: Any, logits: Tensor, before: Exiting | None) -> Exiting:
        """After the segment that ends at exit `index`: writes down the answers of those who are sure, and keeps the others.

        Args:
            index: of the exit.
            inner: tokens after the segment.
            logits: of the exit's head.
            before: the batch as it entered the segment; None: nobody had had a chance to leave.
        """
        count = len(logits)
        state = before or Exiting(
            inner, torch.arange(count, device=logits.device), logits.new_zeros(count, logits.shape[1]),
            torch.full((count,), -1, device=logits.device), torch.zeros(count, dtype=torch.int64, device=logits.device), count,
        )  # fmt: skip
        classes = logits.argmax(dim=1)
        streak = agreeing(classes, state.classes, state.streak)
        done = self.sure(index, logits, streak) & (state.rows >= 0)
        left = state.rows[done]
        answers = state.logits.index_copy(0, left, logits[done])
        self.histogram.add(index, len(left))
        stays = (~done & (state.rows >= 0)).nonzero()[:, 0]
        size = bucket(len(stays), state.batch) if self.buckets else len(stays)
        if size > len(stays):
            stays = torch.cat((stays, stays[:1].expand(size - len(stays))))
        rows = state.rows[stays]
        if size > (real := int((~done & (state.rows >= 0)).sum())):
            rows = torch.cat((rows[:real], rows.new_full((size - real,), -1)))
        return Exiting(_some(inner, stays), rows, answers, classes[stays], streak[stays], state.batch)

    def sure(self, index: int, logits: Tensor, streak: Tensor) -> Tensor:
        """Who is sure enough at exit `index`: B bool. A row that is not finite never is."""
        if self.criterion == "patience":
            return (streak >= self.patience) & logits.isfinite().all(dim=1)
        threshold = self.thresholds[index]
        if threshold is None:
            return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        return score(logits, self.criterion) >= threshold

    def finish(self, state: Exiting, head: Callable[[Any], Tensor]) -> Tensor:
        """The answers of the whole batch, in its order; `head` answers for those who went all the way."""
        here = state.rows >= 0
        if len(state.rows) == 0:
            return state.logits
        last = head(state.inner)
        self.histogram.add(len(self.heads), int(here.sum()))
        return state.logits.index_copy(0, state.rows[here], last[here].to(state.logits.dtype))


def bucket(count: int, batch: int) -> int:
    """The smallest size among batch, 3/4, 1/2 and 1/4 of it, 8 and 1 that holds `count`; 0 for none."""
    if count == 0:
        return 0
    sizes = sorted({batch, max(1, 3 * batch // 4), max(1, batch // 2), max(1, batch // 4), min(8, batch), 1})
    return next(size for size in sizes if size >= count)


def tokens_of(inner: Any, what: str = "an exit") -> Tensor:
    """The tokens themselves, of a tensor or `Tokens`."""
    if isinstance(inner, Tokens):
        return inner.x
    if not isinstance(inner, Tensor):
        raise NotApplicableError(f"{what} cannot read what another method made of the tokens.")
    return inner


def _some(inner: Any, rows: Tensor) -> Any:
    """The images `rows` of a tensor or of `Tokens`."""
    if not isinstance(inner, Tokens):
        return inner[rows]
    fields = {name: value[rows] if isinstance(value, Tensor) else value for name, value in inner._asdict().items()}
    if fields.get("carried") is not None and not isinstance(fields["carried"], Tensor):
        raise NotApplicableError("early-exit cannot part a batch whose tokens carry another method's state from block to block.")
    return Tokens(**fields)
