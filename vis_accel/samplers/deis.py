"""DEIS: the noise is extrapolated by a polynomial through the last evaluations and integrated exactly, one network call a step.

Paper    Zhang and Chen 2022, arXiv:2204.13902, sec. 3.3: in log rho, and in the time t (their tAB). Their rhoAB is `adams`.
Space    data scale 1, where the paper's rho is sigma; e = (x - D) / sigma, node 0 the newest, l_i the Lagrange polynomials of the nodes.
log-rho  x_t = x - t h sum_i w_i e_i,    w_i = sum_k c_ik k! phi_(k+1)(h),    h = log(s / t),
         c_ik the coefficients of l_i in u = (lambda - lambda_0) / h, lambda = -log sigma, and phi of `exponential`.
t        x_t = x + sum_i w_i e_i,    w_i = int_s^t l_i(tau(sigma)) dsigma,
         tau(sigma) = (sqrt(a^2 + 2 (b - a) log(1 + sigma^2)) - a) / (b - a), the time at which the linear VP equation with beta(tau) =
         a + (b - a) tau has this sigma; a, b = 0.1, 20 are the paper's and, to 0.4%, DDPM's linear betas. No closed form: Gauss's rule with
         40 points in log sigma, exact to 1e-12 over the longest step there is.
Counting the paper's "r-DEIS", its tAB-r, uses r + 1 evaluations: that is order r + 1 here.
Same     log-rho of order 3 is `dpm(order=3, prediction="noise")`: two ways to write one interpolation. Asserted to 1e-10.
Differs  solvers know no time: on a network that was not trained on linear betas "t" is a smooth variable like any other, not its time.
         The paper's tAB keeps its order in the last steps: `lower_order_final=False`.
Cost     one call a step; the last `order` noises are kept. The step to 0 is D.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
from torch import Tensor

from vis_accel.method import option
from vis_accel.samplers import schedules
from vis_accel.samplers.dpm import FEW_STEPS, allowed_order
from vis_accel.samplers.exponential import phi
from vis_accel.samplers.noise import NoiseModel
from vis_accel.samplers.solver import SIGMA_CAP, Noise, Past, Solve, Solver

_BETAS = (0.1, 20.0)  # a, b
_POINTS, _GAUSS = np.polynomial.legendre.leggauss(40)


def weights(t: float, nodes: Sequence[float]) -> list[float]:
    """w_i of the step from nodes[0] to t in log rho; `nodes` are sigmas, newest first."""
    h = math.log(nodes[0] / t)
    places = [math.log(nodes[0] / node) / h for node in nodes]  # 0, then negative
    found = []
    for i, place in enumerate(places):
        others = [p for j, p in enumerate(places) if j != i]
        rising = np.atleast_1d(np.poly(others))[::-1] / np.prod([place - p for p in others])  # coefficients of l_i, of u^0 first
        found.append(sum(float(c) * math.factorial(k) * phi(k + 1, h) for k, c in enumerate(rising)))
    return found


@lru_cache(maxsize=1024)  # of a schedule they are the same in every run
def time_weights(t: float, nodes: tuple[float, ...]) -> tuple[float, ...]:
    """w_i of the step from nodes[0] to t > 0 in the time; `nodes` are sigmas, newest first."""
    start, end = math.log(nodes[0]), math.log(t)
    sigmas = np.exp((start + end) / 2 + (end - start) / 2 * _POINTS)
    measure = (end - start) / 2 * _GAUSS * sigmas  # dsigma = sigma dlog(sigma)
    at, places = time(sigmas), [float(time(node)) for node in nodes]
    found = []
    for i, place in enumerate(places):
        lagrange = np.ones_like(at)
        for j, other in enumerate(places):
            if j != i:
                lagrange = lagrange * (at - other) / (place - other)
        found.append(float(measure @ lagrange))
    return tuple(found)


def time(sigma: Any) -> Any:
    """tau(sigma), of a number or an array."""
    a, b = _BETAS
    over = 2 * (b - a) * np.log1p(np.square(sigma))
    return over / (np.sqrt(a * a + over) + a) / (b - a)  # sqrt(a^2 + over) - a, which loses all digits at small sigmas


@dataclass(frozen=True, kw_only=True)
class Deis(Solver):
    """DEIS in log rho or in the time.

    Attributes:
        order: 1 .. 4, the number of evaluations each step uses.
        variable: what the polynomial is in: "log-rho", the better one with many steps, or "t", the paper's own choice for few.
        lower_order_final: lower orders at the end of a run of fewer than 15 steps, 1 for the last.
    """

    name: ClassVar[str] = "deis"

    order: Literal[1, 2, 3, 4] = option(3, "the number of evaluations each step uses")
    variable: Literal["log-rho", "t"] = option("log-rho", "the variable in which the noise is a polynomial")
    lower_order_final: bool = option(True, "whether the last steps of fewer than 15 have lower orders, the last one 1")

    @property
    def convergence_order(self) -> int:
        return self.order

    def auto_schedule(self, noise: NoiseModel) -> str:
        """In the time: equal steps of its square root, as in the paper, where there is a table of times."""
        return "time-power" if self.variable == "t" and noise.kind == "vp" else schedules.resolve("auto", noise)

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
                found = self._weights(t, tuple(node for node, _ in used))
                x = x + sum(w * e for w, (_, e) in zip(found, used, strict=True))
            if s >= SIGMA_CAP:
                nodes = []
        return x

    def _weights(self, t: float, nodes: tuple[float, ...]) -> Sequence[float]:
        """Of the noises in x_t - x."""
        if self.variable == "t":
            return time_weights(t, nodes)
        scale = -t * math.log(nodes[0] / t)
        return [scale * w for w in weights(t, nodes)]
