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
        inner: the tokens of those still here, a tensor or `Tokens`; rows after theirs only fill up a bucket.
        rows: which images of the batch they are (int64), in its order.
        logits: the answers, batch x classes; zeros for who is still here.
        classes, streak: of each image still here, what the last exit said and how many in a row said it; kept for `patience` alone.
        batch: number of images at the start.
    """

    inner: Any
    rows: Tensor
    logits: Tensor
    classes: Tensor
    streak: Tensor
    batch: int


class Histogram:
    """Counts who left by which exit, in all threads. A copy of the model counts for itself, from 0.

    Args:
        exits: how many, the full model not counted.
    """

    def __init__(self, exits: int) -> None:
        self._counts = [0] * (exits + 1)
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> Histogram:
        return Histogram(len(self._counts) - 1)

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

    def leave(self, index: int, inner: Any, logits: Tensor, alone: Tensor | None, before: Exiting | None) -> Exiting:
        """After the segment that ends at exit `index`: writes down the answers of those who are sure, and keeps the others.

        Args:
            index: of the exit.
            inner: tokens after the segment.
            logits: of the exit's head.
            alone: who is sure by these logits alone, as `sure_alone` has it; None where earlier exits have a say.
            before: the batch as it entered the segment; None: nobody had had a chance to leave.
        """
        state = before or _everybody(inner, logits)
        here = len(state.rows)
        logits, classes, streak = logits[:here], state.classes, state.streak
        if alone is None:
            classes = logits.argmax(dim=1)
            streak = agreeing(classes, state.classes, state.streak)
        done = self.sure(index, logits, streak) if alone is None else alone[:here]
        if state.batch == 1:  # nothing to sort: the image goes on or is done
            left = int(done)
            self.histogram.add(index, left)
            return state._replace(
                inner=inner, rows=state.rows[left:], logits=logits if left else state.logits, classes=classes, streak=streak
            )
        order = done.to(torch.uint8).argsort(stable=True)  # who stays, then who leaves, each in the batch's order
        left = int(done.sum())  # the one wait for the device
        stays, leaves = order.split((here - left, left))
        self.histogram.add(index, left)
        answers = state.logits.index_copy(0, state.rows[leaves], logits[leaves]) if left else state.logits
        size = bucket(len(stays), state.batch) if self.buckets else len(stays)
        if left or size < _count(inner):
            inner = _some(inner, torch.cat((stays, stays[:1].expand(size - len(stays)))) if size > len(stays) else stays)
        if alone is None:
            classes, streak = classes[stays], streak[stays]
        return Exiting(inner, state.rows[stays], answers, classes, streak, state.batch)

    def sure(self, index: int, logits: Tensor, streak: Tensor) -> Tensor:
        """Who is sure enough at exit `index`: B bool. A row that is not finite never is."""
        alone = self.sure_alone(index, logits)
        return (streak >= self.patience) & logits.isfinite().all(dim=1) if alone is None else alone

    def sure_alone(self, index: int, logits: Tensor) -> Tensor | None:
        """The same where it takes the logits of this exit and no other: nothing but tensors, so that a segment's graph can hold it."""
        if self.criterion == "patience":
            return None
        threshold = self.thresholds[index]
        if threshold is None:
            return torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        return score(logits, self.criterion) >= threshold

    def finish(self, state: Exiting, head: Callable[[Any], Tensor]) -> Tensor:
        """The answers of the whole batch, in its order; `head` answers for those who went all the way."""
        here = len(state.rows)
        if here == 0:
            return state.logits
        last = head(state.inner)[:here]
        self.histogram.add(len(self.heads), here)
        if here == state.batch:  # nobody left: their answers are the model's own, in its own dtype
            return last
        return state.logits.index_copy(0, state.rows, last.to(state.logits.dtype))


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


def _everybody(inner: Any, logits: Tensor) -> Exiting:
    """A batch that nobody has left."""
    count, device = len(logits), logits.device
    rows, none = torch.arange(count, device=device), torch.zeros(count, dtype=torch.int64, device=device)
    return Exiting(inner, rows, logits.new_zeros(count, logits.shape[1]), none - 1, none, count)


def _count(inner: Any) -> int:
    """Rows of a tensor or of `Tokens`."""
    return len(tokens_of(inner))


def _some(inner: Any, rows: Tensor) -> Any:
    """The images `rows` of a tensor or of `Tokens`."""
    if not isinstance(inner, Tokens):
        return inner[rows]
    fields = {name: value[rows] if isinstance(value, Tensor) else value for name, value in inner._asdict().items()}
    if fields.get("carried") is not None and not isinstance(fields["carried"], Tensor):
        raise NotApplicableError("early-exit cannot part a batch whose tokens carry another method's state from block to block.")
    return Tokens(**fields)
