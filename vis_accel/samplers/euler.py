"""Euler: the first-order step on the probability-flow equation in sigma.

Paper    Karras et al. 2022, arXiv:2206.00364, Algorithm 1 without its correction.
Step     d = (x - D) / s;  x' = x + (t - s) d, computed as D + t d: the same number, but exact in float32 where s is huge.
Cost     one call a step.   Equals DDIM with eta = 0: two names for one step, kept because both are asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from vis_accel.samplers.solver import Noise, Past, Solve, Solver


@dataclass(frozen=True, kw_only=True)
class Euler(Solver):
    """Euler's method in sigma."""

    name: ClassVar[str] = "euler"

    @property
    def convergence_order(self) -> int:
        return 1

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        for s, t in pairwise(sigmas):
            x, y = yield x, s
            d = (x - y.denoised) / s
            x = y.denoised + t * d
        return x
