"""Restart: once near the image, back up by one large addition of noise and down again, several times.

Paper    Xu et al. 2023, arXiv:2306.14878, Algorithm 1, with one interval.
Space    data scale 1. At the first knot t <= `low`: x <- x + sqrt(high^2 - t^2) z, then down from `high` to t by Heun over `inner` steps of
         the rho = 7 grid, `times` times over; before and after it Heun over the run's own knots.
Why      the large noise forgets the errors made so far, and the deterministic way down makes few new ones: better than small doses of noise
         in every step, from about 40 calls. Below 20 calls the calls are better spent on the way down.
Cost     2 n - 1 calls as for Heun, and 2 `inner` `times` more. A run that begins below `low` never restarts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from vis_accel.method import option
from vis_accel.samplers.heun import heun_step
from vis_accel.samplers.schedules import RHO
from vis_accel.samplers.solver import Noise, Past, Solve, Solver, draw


@dataclass(frozen=True, kw_only=True)
class Restart(Solver):
    """Heun with restarts.

    Attributes:
        low, high: the interval of noise that is gone through again; the paper's best are 0.05 .. 0.3 and 0.3 .. 10, by the model.
        inner: steps of one way down.
        times: how often.
    """

    name: ClassVar[str] = "restart"

    low: float = option(0.1, "where it turns back", above=0)
    high: float = option(1.0, "how far back it goes", above=0)
    inner: int = option(3, "steps of one way down", low=1)
    times: int = option(2, "how often it goes back", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high <= self.low:
            raise self.refused("high", f"must be above low, {self.low}")

    @property
    def convergence_order(self) -> int:
        return 2

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        for s, t in pairwise(sigmas):
            x = yield from heun_step(x, s, t)
            if 0 < t <= self.low < s:
                for _ in range(self.times):
                    x = x + math.sqrt(self.high**2 - t**2) * draw(noise, x)
                    for a, b in pairwise(self.way_down(t)):
                        x = yield from heun_step(x, a, b)
        return x

    def way_down(self, end: float) -> tuple[float, ...]:
        """The knots from `high` to `end`, linear in sigma^(1 / rho)."""
        first, last = self.high ** (1 / RHO), end ** (1 / RHO)
        between = ((first + i / self.inner * (last - first)) ** RHO for i in range(1, self.inner))
        return (self.high, *between, end)
