"""Guidance reuse: the unconditional half is evaluated in every k-th call; between, its difference from the conditional one is kept.

Paper    Lv et al. 2024 (FasterCache), arXiv:2410.19355, its CFG cache.
Rule     in calls 0, k, 2k, ... both halves; there d := e_c - e_u. In the calls between, e_u := e_c - d.
Cost     1 + 1/k rows an image and call, instead of 2, and memory for d, as large as the network's output.
Differs  the paper keeps the low and the high frequencies of d apart and weighs them by the time, and begins after the first part of a run;
         here d is kept as it is, from the first call on, in whatever the network predicts.
Not      a cache of the unconditional output itself: that would be of another sample.    Neutral  guidance-reuse(every=1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vis_accel.clock import Moment
from vis_accel.guidance.base import Guidance, Remembered
from vis_accel.method import option

__all__ = ["GuidanceReuse"]


@dataclass(frozen=True, kw_only=True)
class GuidanceReuse(Guidance):
    """The difference of the two halves, reused.

    Attributes:
        every: k.
    """

    name: ClassVar[str] = "guidance-reuse"

    every: int = option(2, "the calls from one that evaluates both halves to the next", low=1)

    def both(self, moment: Moment, run: Remembered) -> bool:
        return run.difference is None or (moment.index - run.first) % self.every == 0

    def learn(self, run: Remembered, conditional: Tensor, unconditional: Tensor) -> None:
        run.difference = conditional - unconditional

    def unconditional(self, run: Remembered, conditional: Tensor) -> Tensor:
        assert run.difference is not None  # noqa: S101 - the first call evaluated both
        return conditional - run.difference

    def idle(self, levels: tuple[float, float]) -> str:
        return f"every call of {self} evaluated both halves: a run shorter than two calls, or every=1"
