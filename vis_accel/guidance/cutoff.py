"""Guidance cutoff: guidance in the first calls of a run; in the rest the conditional half alone is evaluated.

Paper    Castillo et al. 2023, arXiv:2312.12487: late in a run the guided and the conditional update point the same way.
Rule     e = e_u + w (e_c - e_u) in the first `share` of the run's calls, else e = e_c. `share` counts calls, rounded up, from the one the
         run begins with; a cutoff at a noise level is guidance-window(lo=..., hi=None).
Cost     1 + share rows an image and call, instead of 2.
Differs  the paper cuts each image off where its own updates agree; that threshold would have to be looked at in every call, and rows of one
         batch would part ways. Here the place is fixed.
Jumps    as for guidance-window, but there is one edge.    Neutral  guidance-cutoff(share=1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from vis_accel.clock import Moment
from vis_accel.guidance.base import Guidance, Remembered
from vis_accel.method import option

__all__ = ["GuidanceCutoff"]


def guided_calls(share: float, calls: int) -> int:
    """How many of a run's calls are guided: `share` of them, rounded up but for the rounding of the product itself."""
    return math.ceil(round(share * calls, 9))


@dataclass(frozen=True, kw_only=True)
class GuidanceCutoff(Guidance):
    """Guidance in the first calls.

    Attributes:
        share: of the run's calls.
        restart: whether the samplers of this package forget their history at the edge.
    """

    name: ClassVar[str] = "guidance-cutoff"

    share: float = option(0.5, "the share of the calls, from the first, that are guided", above=0, high=1)
    restart: bool = option(False, "whether samplers forget their history at the edge")

    def both(self, moment: Moment, run: Remembered) -> bool:
        return moment.index - run.first < guided_calls(self.share, moment.calls - run.first)

    def clears(self) -> bool:
        return self.restart

    def idle(self, levels: tuple[float, float]) -> str:
        return f"the share {self.share:g} of {self} leaves no call without guidance"
