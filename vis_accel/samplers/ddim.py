"""DDIM: the first-order step of diffusion models, deterministic or with any share of fresh noise.

Paper    Song et al. 2020, arXiv:2010.02502, eq. 12 and 16.
Step     sigma s -> t with data scale 1. The paper's sigma_t(eta), divided by the new alpha, is c = eta t sqrt(1 - t^2 / s^2), and
             x' = D + sqrt(t^2 - c^2) (x - D) / s + c z.
         eta = 0 is Euler's step in sigma and the first-order DPM-Solver; eta = 1 is DDPM with the small fixed variance.
Exact    every eta keeps the noise level: for data at a single point x' has variance t^2 exactly.
Cost     one call a step.         Differs: knots are any sigmas (the paper's are whole times); the last step, to 0, adds no noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from vis_accel.method import option
from vis_accel.samplers.solver import Noise, Past, Solve, Solver, draw


@dataclass(frozen=True, kw_only=True)
class Ddim(Solver):
    """DDIM.

    Attributes:
        eta: the share of fresh noise, 0 (deterministic) .. 1 (DDPM).
    """

    name: ClassVar[str] = "ddim"

    eta: float = option(0.0, "the share of fresh noise", low=0, high=1)

    @property
    def convergence_order(self) -> int:
        return 1

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        for s, t in pairwise(sigmas):
            x, y = yield x, s
            fresh = self.eta**2 * (1 - (t / s) ** 2)  # c^2 / t^2, the part of the new variance that is drawn anew
            keep = t / s * math.sqrt(1 - fresh)
            x = keep * x + (1 - keep) * y.denoised
            if fresh * t > 0:
                x = x + t * math.sqrt(fresh) * draw(noise, x)
        return x
