"""DDPM: ancestral sampling, the reverse Markov chain the networks were first trained for.

Papers   Ho et al. 2020, arXiv:2006.11239, Algorithm 2, eq. 6 and 7, sec. 3.2 for the two fixed variances; Nichol and Dhariwal 2021,
         arXiv:2102.09672, eq. 15 and sec. 4 for the learned one on fewer steps.
Step     sigma s -> t with data scale 1, written for any two knots. The posterior of x' given x and D has
             mean  (t^2 / s^2) x + (1 - t^2 / s^2) D,    variance  t^2 (1 - t^2 / s^2)        fixed-small, the paper's beta-tilde
             or the forward step's own variance          (s^2 - t^2) (1 + t^2) / (1 + s^2)    fixed-large, the paper's beta
         in units of the new alpha squared. fixed-small is exact for data at one point, fixed-large for data N(0, 1). learned is
         small^(1-f) large^f, f the network's; as both bounds are those of the step at hand, respacing needs nothing else.
Cost     one call a step.   Differs: the last step, to 0, adds no noise whatever the schedule.
Same     fixed-small is `ddim(eta=1)` and `euler-ancestral`: one step in three notations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from vis_accel.errors import NotApplicableError
from vis_accel.method import option
from vis_accel.samplers.solver import Evaluation, Noise, Past, Solve, Solver, draw


@dataclass(frozen=True, kw_only=True)
class Ddpm(Solver):
    """DDPM.

    Attributes:
        variance: "fixed-small" (the better one at few steps), "fixed-large" (at a thousand), or "learned" by the network.
    """

    name: ClassVar[str] = "ddpm"

    variance: Literal["fixed-small", "fixed-large", "learned"] = option("fixed-small", "the variance of each step")

    @property
    def convergence_order(self) -> int:
        return 1

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        for s, t in pairwise(sigmas):
            x, y = yield x, s
            keep = (t / s) ** 2
            x = keep * x + (1 - keep) * y.denoised
            if t > 0 and noise is not None:
                fresh = draw(noise, x)
                x = x + self._deviation(s, t, y) * fresh
        return x

    def _deviation(self, s: float, t: float, y: Evaluation) -> float | Tensor:
        small, large = variance_bounds(s, t)
        if self.variance != "learned":
            return math.sqrt(small if self.variance == "fixed-small" else large)
        if y.share is None:
            raise NotApplicableError(
                "The pipeline hands over no learned variance: its network has none, or it cuts it off, as those of DiT and PixArt do.",
                hint="ddpm(variance='fixed-small')",
            )
        return ((1 - y.share) * math.log(small) / 2 + y.share * math.log(large) / 2).exp()


def variance_bounds(s: float, t: float) -> tuple[float, float]:
    """The variance of the posterior and that of the forward step, s -> t > 0, data scale 1."""
    return t * t * (1 - (t / s) ** 2), (1 + t * t) / (1 + s * s) * (s * s - t * t)
