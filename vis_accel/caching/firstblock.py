"""First-block cache: if the first block changed the stream about as it did in the last full call, the other blocks would have, too.

Paper    Liu et al. 2024, arXiv:2411.19108 (TeaCache), which decides by the change of the first block's modulated input; deciding by its
         residual was published as code only (ParaAttention).
Decision with r = what the first block adds to the stream and r_0 = the same in the last full call: image by image
         |r - r_0|_1 / |r_0|_1, and if the largest of the batch is below `threshold`, all other blocks stand idle and what they added
         together in the last full call is added again. 0 reuses nothing.
Plan     the first call and the last two are full, and none follows more than `most` that reused.
Cost     a cheap call costs one block. Each call waits for one number from the device. Memory: two tensors of the stream's shape.
Differs  the largest of the batch decides, not the mean: no image gets what is further off than the threshold. Still, an image depends on
         which others are in its batch, at the places where that turns the decision.
Not for  compile: the decision is made in the middle of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vis_accel.caching.calls import Cache, Past
from vis_accel.caching.gate import Gate, hidden_in
from vis_accel.caching.schedule import LAST
from vis_accel.caching.transformers import KNOWN, blocks_of, stream, with_stream
from vis_accel.clock import Moment
from vis_accel.errors import NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import option

__all__ = ["Firstblock", "change"]


@dataclass(frozen=True, kw_only=True)
class Firstblock(Cache):
    """All blocks but the first, reused while the first changes little.

    Attributes:
        threshold: of the relative change of the first block's residual.
        most: calls in a row that may reuse.
    """

    name: ClassVar[str] = "firstblock"
    known: ClassVar[tuple[str, ...]] = KNOWN
    others: ClassVar[str] = "deepcache"
    breaks: ClassVar[frozenset[str]] = frozenset({"static forward"})

    threshold: float = option(0.1, "the relative change of the first block's residual below which the others are reused", low=0, below=1)
    most: int = option(3, "how many calls in a row may reuse", low=1)

    def check_target(self, view: Any) -> None:
        super().check_target(view)
        if len(blocks_of(view.denoiser)) < 2:
            raise NotApplicableError(f"{self.name} needs a transformer of two blocks or more; this one has one.", hint="taylor")

    def gate(self) -> _JudgingGate:
        return _JudgingGate(self.threshold)

    def serve(self, moment: Moment, past: Past) -> Sequence[Any] | None:
        if moment.index >= moment.calls - LAST or past.hits >= self.most:
            return None
        return past.nodes[-1].made

    def install(self, handle: Handle, network: Any, gate: Any) -> None:
        first, *middle, last = blocks_of(network)
        gate.add_judge(handle, first)
        gate.add_tail(handle, last)
        for block in middle:
            gate.add_idle(handle, block, lambda *args, **kwargs: with_stream(hidden_in(args, kwargs), args, kwargs))


class _JudgingGate(Gate):
    """A gate whose first source, the first block, decides within the forward. Its sources: that block's residual, the others' together."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold, self.sources = threshold, 2
        self.entered = torch.empty(0)  # the stream behind the first block

    def open(self, served: Sequence[Any] | None) -> None:
        super().open(served)
        self.reuse = False

    def close(self) -> list[Any]:
        self.entered = torch.empty(0)
        return super().close()

    def add_judge(self, handle: Handle, block: Any) -> None:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            found = plain(*args, **kwargs)
            residual, self.entered = stream(found) - hidden_in(args, kwargs), stream(found)
            self.reuse = bool(self.served) and change(residual, self.served[0]) < self.threshold
            self.made[0] = residual
            return found

        handle.swap_forward(block, forward)

    def add_tail(self, handle: Handle, block: Any) -> None:
        plain = block.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.reuse:
                self.answered = True
                return with_stream(hidden_in(args, kwargs) + self.served[1], args, kwargs)
            found = plain(*args, **kwargs)
            self.made[1] = stream(found) - self.entered
            return found

        handle.swap_forward(block, forward)


def change(now: Tensor, before: Tensor) -> float:
    """The largest relative L1 change of an image: [B, N, C] against [B, N, C]."""
    difference, size = (now - before).float().abs().flatten(1).sum(1), before.float().abs().flatten(1).sum(1)
    return float((difference / size).max())
