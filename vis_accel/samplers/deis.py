"""DEIS: an exponential integrator that extrapolates the noise by a polynomial in log sigma, one network call a step.

Paper    Zhang and Chen 2022, arXiv:2204.13902, sec. 3.3, in the variable log rho (their rhoAB is `adams`; tAB, a polynomial in the
         network's time, is not built: solvers know no time).
Space    data scale 1, where the paper's rho is sigma; e = (x - D) / sigma, h = log(s / t), node 0 the newest.
Step     x_t = x - t h sum_i w_i e_i,    w_i = sum_k c_ik k! phi_(k+1)(h),
         c_ik the coefficients of the Lagrange polynomial l_i in u = (lambda - lambda_0) / h, lambda = -log sigma, and phi of `exponential`.
         In the paper's counting "r-DEIS" uses r + 1 evaluations: that is order r + 1 here.
Same     order 3 is `dpm(order=3, prediction="noise")`: two ways to write one interpolation. Asserted to 1e-10.
Cost     one call a step; the last `order` noises are kept. The step to 0 is D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from vis_accel.method import option
from vis_accel.samplers.dpm import FEW_STEPS, allowed_order
from vis_accel.samplers.exponential import phi
from vis_accel.samplers.solver import SIGMA_CAP, Noise, Past, Solve, Solver


def weights(t: float, nodes: Sequence[float]) -> list[float]:
    """w_i of the step from nodes[0] to t; `nodes` are sigmas, newest first."""
    h = math.log(nodes[0] / t)
    places = [math.log(nodes[0] / node) / h for node in nodes]  # 0, then negative
    found = []
    for i, place in enumerate(places):
        others = [p for j, p in enumerate(places) if j != i]
        rising = np.atleast_1d(np.poly(others))[::-1] / np.prod([place - p for p in others])  # coefficients of l_i, of u^0 first
        found.append(sum(float(c) * math.factorial(k) * phi(k + 1, h) for k, c in enumerate(rising)))
    return found


@dataclass(frozen=True, kw_only=True)
class Deis(Solver):
    """DEIS in log rho.

    Attributes:
        order: 1 .. 4, the number of evaluations each step uses.
        lower_order_final: lower orders at the end of a run of fewer than 15 steps, 1 for the last.
    """

    name: ClassVar[str] = "deis"

    order: Literal[1, 2, 3, 4] = option(3, "the number of evaluations each step uses")
    lower_order_final: bool = option(True, "whether the last steps of fewer than 15 have lower orders, the last one 1")

    @property
    def convergence_order(self) -> int:
        return self.order

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        n = len(sigmas) - 1
        lower = self.lower_order_final and n < FEW_STEPS
        nodes = [(s, (u - d) / s) for s, u, d in reversed(history)]  # newest first
        for i, (s, t) in enumerate(pairwise(sigmas)):
            x, y = yield x, s
            nodes = [(s, (x - y.denoised) / s), *nodes][: self.order]
            if t == 0 or s >= SIGMA_CAP:
                x = t / s * x + (1 - t / s) * y.denoised
            else:
                used = nodes[: allowed_order(self.order, len(nodes), n - i, lower)]
                found = weights(t, [node for node, _ in used])
                x = x - sum(t * math.log(s / t) * w * e for w, (_, e) in zip(found, used, strict=True))
            if s >= SIGMA_CAP:
                nodes = []
        return x
