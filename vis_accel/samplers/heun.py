"""Heun: the second-order step of EDM, without its noise.

Paper    Karras et al. 2022, arXiv:2206.00364, Algorithm 1.
Step     d = (x - D(x; s)) / s;  x' = x + (t - s) d;  d' = (x' - D(x'; t)) / t;  x' <- x + (t - s) (d + d') / 2.
Cost     two calls a step, one for the step to 0 and for a step from infinity: 2n - 1 calls for n steps to 0.
Differs  x + (t - s) d is computed as D + t d, and the correction added to it: exact in float32 where s is huge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from vis_accel.samplers.solver import SIGMA_CAP, Noise, Past, Solve, Solver


@dataclass(frozen=True, kw_only=True)
class Heun(Solver):
    """Heun's method in sigma."""

    name: ClassVar[str] = "heun"

    @property
    def convergence_order(self) -> int:
        return 2

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        for s, t in pairwise(sigmas):
            x, y = yield x, s
            d = (x - y.denoised) / s
            x = y.denoised + t * d
            if t > 0 and s < SIGMA_CAP:
                x, y = yield x, t
                x = x + (t - s) / 2 * ((x - y.denoised) / t - d)
        return x
