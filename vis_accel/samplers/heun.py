"""Heun: the second-order step of EDM, with or without its noise.

Paper    Karras et al. 2022, arXiv:2206.00364, Algorithm 1 (churn = 0) and Algorithm 2.
Step     d = (x - D(x; s)) / s;  x' = x + (t - s) d;  d' = (x' - D(x'; t)) / t;  x' <- x + (t - s) (d + d') / 2.
Churn    before a step from low <= s <= high, noise lifts x to s' = (1 + churn) s: x + sqrt(s'^2 - s^2) noise_scale z. The option is the
         paper's gamma, S_churn / n. The first step of a run is never churned (a pipeline has called its network before it asks a sampler),
         and no noise is raised above the first knot.
Cost     two calls a step, one for the step to 0 and for a step from infinity: 2n - 1 calls for n steps to 0.
Differs  x + (t - s) d is computed as D + t d, and the correction added to it: exact in float32 where s is huge.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from vis_accel.errors import NotApplicableError
from vis_accel.method import option
from vis_accel.samplers.solver import SIGMA_CAP, Noise, Past, Reply, Request, Solve, Solver, draw


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """Heun's method in sigma.

    Attributes:
        churn: by what share of itself the noise is raised before a step; 0: the method is deterministic.
        low, high: the noise levels between which it is.
        noise_scale: standard deviation of the noise that is added; a little above 1 makes up for images that come out too smooth.
    """

    name: ClassVar[str] = "heun"

    churn: float = option(0.0, "by what share the noise is raised before a step", low=0, high=math.sqrt(2) - 1)
    low: float = option(0.05, "the least noise that is raised", low=0)
    high: float = option(50.0, "the most noise that is raised", low=0)
    noise_scale: float = option(1.0, "standard deviation of the added noise", low=0)

    @property
    def convergence_order(self) -> int:
        return 2

    def resumed(self) -> Solver:
        if self.churn:
            message = f"A run of {self} cannot go on at a later knot: its noise was raised there before the network was called."
            raise NotApplicableError(message, hint="heun without churn, or one run from beginning to end")
        return self

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        for i, (s, t) in enumerate(pairwise(sigmas)):
            if i > 0 and self.churn and self.low <= s <= self.high:
                raised = min(s * (1 + self.churn), sigmas[0])
                x = x + self.noise_scale * math.sqrt(raised**2 - s**2) * draw(noise, x)
                s = raised
            x = yield from heun_step(x, s, t)
        return x


def heun_step(x: Tensor, s: float, t: float) -> Generator[Request, Reply, Tensor]:
    """One step from s to t, with its one or two requests."""
    x, y = yield x, s
    d = (x - y.denoised) / s
    x = y.denoised + t * d
    if t > 0 and s < SIGMA_CAP:
        x, y = yield x, t
        x = x + (t - s) / 2 * ((x - y.denoised) / t - d)
    return x
