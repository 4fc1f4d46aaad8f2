"""Adams-Bashforth in sigma: multistep extrapolation of the noise, one network call a step.

Papers   iPNDM: Liu et al. 2022, arXiv:2202.09778, eq. 12 and 14 without the Runge-Kutta start, as Zhang and Chen 2022, arXiv:2204.13902
         use it. The exact weights are their rhoAB (sec. 3.3): Lagrange interpolation in sigma.
Space    data scale 1, in which the paper's transfer map (DDIM) is x_t = x + (t - s) e, e = (x - D) / sigma; node 0 the newest.
Step     x_t = x + (t - s) sum_i w_i e_i, sum_i w_i = 1, over the last `order` evaluations
             ipndm   1 | 3, -1 over 2 | 23, -16, 5 over 12 | 55, -59, 37, -9 over 24: right where the steps of sigma are equal
             adams   w_i = 1 / (t - s) int_s^t l_i(u) du, l_i the Lagrange polynomials of the nodes: right on every grid
Order    ipndm 2 at most, for on other grids its weights are off by the ratios of the steps; adams `order`. Measured on a closed form.
Differs  x_t is computed as D + t e_0 + (t - s) sum_(i>0) w_i (e_i - e_0): exact in float32 where s is huge. The step to 0 is D.
Cost     one call a step; the last `order` noises are kept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal

from torch import Tensor

from vis_accel.method import option
from vis_accel.samplers import schedules
from vis_accel.samplers.noise import NoiseModel
from vis_accel.samplers.solver import SIGMA_CAP, Noise, Past, Solve, Solver

_EQUAL_STEPS = {1: (1.0,), 2: (3 / 2, -1 / 2), 3: (23 / 12, -16 / 12, 5 / 12), 4: (55 / 24, -59 / 24, 37 / 24, -9 / 24)}
_GAUSS = (-1 / sqrt(3), 1 / sqrt(3))  # two points are exact to degree 3, the highest there is here


def exact_weights(t: float, nodes: Sequence[float]) -> tuple[float, ...]:
    """Means over [nodes[0], t] of the Lagrange polynomials of `nodes` (sigmas, newest first, at most four)."""
    s = nodes[0]
    points = [(s + t) / 2 + g * (t - s) / 2 for g in _GAUSS]
    return tuple(sum(_lagrange(i, u, nodes) for u in points) / len(points) for i in range(len(nodes)))


def _lagrange(i: int, u: float, nodes: Sequence[float]) -> float:
    value = 1.0
    for j, node in enumerate(nodes):
        if j != i:
            value *= (u - node) / (nodes[i] - node)
    return value


@dataclass(frozen=True, kw_only=True)
class _AdamsBashforth(Solver):
    """What `ipndm` and `adams` share.

    Attributes:
        order: 1 .. 4, the number of evaluations each step uses.
    """

    order: Literal[1, 2, 3, 4] = option(4, "the number of evaluations each step uses")

    def auto_schedule(self, noise: NoiseModel) -> str:
        """Karras's, on which these solvers are known to be good, wherever the first sigma is finite."""
        return schedules.where_finite("karras", noise)

    @abstractmethod
    def weights(self, t: float, nodes: Sequence[float]) -> Sequence[float]:
        """The weights of the noises at `nodes` (sigmas, newest first) in the step to t."""

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        nodes = [(s, (u - d) / s) for s, u, d in reversed(history)]  # newest first
        for s, t in pairwise(sigmas):
            x, y = yield x, s
            e = (x - y.denoised) / s
            nodes = [(s, e), *nodes][: self.order]
            x = y.denoised + t * e if t > 0 else y.denoised
            if s >= SIGMA_CAP:
                nodes = []
            elif t > 0 and len(nodes) > 1:
                weights = self.weights(t, [node for node, _ in nodes])
                x = x + sum((t - s) * w * (older - e) for w, (_, older) in zip(weights[1:], nodes[1:], strict=True))
        return x


@dataclass(frozen=True, kw_only=True)
class Ipndm(_AdamsBashforth):
    """Improved PNDM: the weights of equal steps, on whatever grid."""

    name: ClassVar[str] = "ipndm"

    @property
    def convergence_order(self) -> int:
        return min(self.order, 2)

    def weights(self, t: float, nodes: Sequence[float]) -> Sequence[float]:
        return _EQUAL_STEPS[len(nodes)]


@dataclass(frozen=True, kw_only=True)
class Adams(_AdamsBashforth):
    """Adams-Bashforth with the weights of the grid at hand."""

    name: ClassVar[str] = "adams"

    @property
    def convergence_order(self) -> int:
        return self.order

    def weights(self, t: float, nodes: Sequence[float]) -> Sequence[float]:
        return exact_weights(t, nodes)
