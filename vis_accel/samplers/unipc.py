"""UniPC: a multistep predictor and a corrector of one form; the corrector costs no call.

Paper    Zhao et al. 2023, arXiv:2302.04867, Algorithms 1 (UniC) and 2 (UniP), data prediction, B(h) of sec. 3.4.
Space    data scale 1; lambda = -log sigma, h = lambda_t - lambda_s, z = -h; m_j = D at node j, node 0 the newest.
Step     r_j = (lambda_j - lambda_0) / h for older nodes (negative); r = 1 for the point stepped to, known to the corrector only.
             base  = (t/s) x - (e^z - 1) m0
             x_t   = base - B sum_j rho_j (m_j - m0) / r_j,     B = z (bh1) or e^z - 1 (bh2)
             rho:    sum_j r_j^(k-1) rho_j = k! z phi_(k+1)(z) / B,   k = 1 .. number of nodes besides node 0
         With one such node the paper sets rho = 1/2, right to the order needed.
Correct  D at the *predicted* x_t is asked for once: it corrects x_t and stays in the history. x_t - predicted is added to the x that
         comes back, so an edit by a callback survives.
Order    p for the predictor, p + 1 with the corrector.   bh2 with order 2 and no corrector is DPM-Solver++ 2M.
Cost     one call a step; the point a run ends at is not corrected.
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
from vis_accel.samplers.dpm import FEW_STEPS, Node, allowed_order
from vis_accel.samplers.exponential import phi
from vis_accel.samplers.solver import SIGMA_CAP, Noise, Past, Solve, Solver


@dataclass(frozen=True, kw_only=True)
class Unipc(Solver):
    """UniPC.

    Attributes:
        order: 1 .. 3, of the predictor; with the corrector the run is of one order more.
        variant: "bh1" (better without guidance and with few steps) or "bh2".
        corrector: whether each evaluation also corrects the point it was made at.
        lower_order_final: orders 2 and 1 for the last two steps of a run of fewer than 15. A step to sigma 0 is of order 1 always.
    """

    name: ClassVar[str] = "unipc"

    order: Literal[1, 2, 3] = option(2, "the order of the predictor")
    variant: Literal["bh1", "bh2"] = option("bh2", "the paper's function B(h)")
    corrector: bool = option(True, "whether evaluations correct the points they were made at")
    lower_order_final: bool = option(True, "whether the last two of fewer than 15 steps have orders 2 and 1")

    @property
    def convergence_order(self) -> int:
        return self.order + self.corrector

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        n = len(sigmas) - 1
        lower = self.lower_order_final and n < FEW_STEPS
        nodes: list[Node] = [(s, d) for s, _, d in reversed(history)]  # newest first
        used: list[Node] = []  # those the last prediction was made from; empty: nothing to correct
        for i, (s, t) in enumerate(pairwise(sigmas)):
            x, y = yield x, s
            if self.corrector and used:
                # Both formulas share their base, so the correction is the difference of the two sums.
                x = x + self._sum([(s, y.denoised)], used, s) - self._sum([], used, s)
            nodes, used = [(s, y.denoised), *nodes][: self.order], []
            if t == 0 or s >= SIGMA_CAP:
                x = t / s * x + (1 - t / s) * y.denoised
            else:
                used = nodes[: allowed_order(self.order, len(nodes), n - i, lower)]
                x = t / s * x + (1 - t / s) * y.denoised + self._sum([], used, t)
            if s >= SIGMA_CAP:
                nodes = []
        return x

    def _sum(self, ahead: Sequence[Node], used: Sequence[Node], t: float) -> Tensor | float:
        """- B sum_j rho_j (m_j - m0) / r_j for the step from used[0] to t, over the older nodes and the one `ahead`, if any."""
        (s, m0), others = used[0], [*used[1:], *ahead]
        if not others:
            return 0.0
        h = math.log(s / t)
        z = -h
        b = z if self.variant == "bh1" else math.expm1(z)
        r = [math.log(s / sigma) / h for sigma, _ in others]
        total: Tensor | float = 0.0
        for rho, r_j, (_, m_j) in zip(_rho(r, z, b), r, others, strict=True):
            total = total + (-b * rho / r_j) * (m_j - m0)
        return total


def _rho(r: Sequence[float], z: float, b: float) -> list[float]:
    """The weights that make the sum exact for polynomials in lambda up to degree len(r)."""
    if len(r) == 1:
        return [0.5]
    powers = [[r_j**k for r_j in r] for k in range(len(r))]
    moments = [math.factorial(k) * z * phi(k + 1, z) / b for k in range(1, len(r) + 1)]
    found: list[float] = np.linalg.solve(np.array(powers), np.array(moments)).tolist()
    return found
