"""DPM-Solver and DPM-Solver++: multistep exponential integrators, one network call a step.

Papers   Lu et al. 2022, arXiv:2206.00927 (noise prediction), and 2022, arXiv:2211.01095, Algorithm 2 and appendix B (data prediction).
Space    data scale 1; lambda = -log sigma, h = lambda_t - lambda_s. m is what is integrated: D, or the noise (x - D) / sigma.
Step     with r0 = (lambda_0 - lambda_1) / h, r1 = (lambda_1 - lambda_2) / h, node 0 the newest, and `exponential.phi`,
             order 1    D1 = D2 = 0
             order 2    D1 = (m0 - m1) / r0, weight phi_1 / 2 (the papers' "midpoint", which guided models prefer to phi_2)
             order 3    u = (m0 - m1) / r0, v = (m1 - m2) / r1,  D1 = u + r0 (u - v) / (r0 + r1),  D2 = 2 (u - v) / (r0 + r1)
             data       x_t = (t/s) x + h (phi_1(-h) m0 + phi_2(-h) D1 + phi_3(-h) D2)
             noise      x_t = x - t h (phi_1(h) m0 + phi_2(h) D1 + phi_3(h) D2)
Differs  D2 carries the factor 2 of a second derivative. The papers' code and its copies leave it out, and are then of order 2:
         measured on a closed form 1.9, with the factor 3.0. `third="published"` leaves it out too: the error is smaller at few steps.
Cost     one call a step; the last `order` - 1 evaluations are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from vis_accel.method import option
from vis_accel.samplers import schedules
from vis_accel.samplers.exponential import phi
from vis_accel.samplers.noise import NoiseModel
from vis_accel.samplers.solver import SIGMA_CAP, Noise, Past, Solve, Solver

Node = tuple[float, Tensor]  # (sigma, m)
FEW_STEPS = 15  # below it, the papers' code lowers the order of the last two steps


def allowed_order(order: int, known: int, remaining: int, lower: bool) -> int:
    """The order of one step: as high as asked for, as the evaluations known allow, and at the end as the steps remaining do."""
    return min(order, known, remaining) if lower else min(order, known)


@dataclass(frozen=True, kw_only=True)
class Multistep(Solver):
    """What `dpm` and `dpmpp` share.

    Attributes:
        order: 1 .. 3; 2 where guidance is used, 3 without.
        lower_order_final: orders 2 and 1 for the last two steps of a run of fewer than 15. A step to sigma 0 is of order 1 always.
        third: order 3 as it converges ("exact"), or as the papers' code has it ("published"), which is of order 2.
    """

    order: Literal[1, 2, 3] = option(2, "the number of evaluations each step uses")
    lower_order_final: bool = option(True, "whether the last two of fewer than 15 steps have orders 2 and 1")
    third: Literal["exact", "published"] = option("exact", "order 3 as it converges, or as the papers' code has it")

    @property
    def convergence_order(self) -> int:
        return self.order if self.third == "exact" else min(self.order, 2)

    def auto_schedule(self, noise: NoiseModel) -> str:
        """Equal steps of log sigma, the variable of the expansion, wherever the first sigma is finite."""
        return schedules.where_finite("logsnr", noise)

    @property
    def integrates_data(self) -> bool:
        """Whether m is the denoised image; if not, it is the noise."""
        return True

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        n = len(sigmas) - 1
        lower = self.lower_order_final and n < FEW_STEPS
        nodes = [(s, self._integrand(s, u, d)) for s, u, d in reversed(history)]  # newest first
        for i, (s, t) in enumerate(pairwise(sigmas)):
            x, y = yield x, s
            nodes = [(s, self._integrand(s, x, y.denoised)), *nodes][: self.order]
            if t == 0 or s >= SIGMA_CAP:
                x = t / s * x + (1 - t / s) * y.denoised  # order 1 in either prediction, without the infinite h
            else:
                x = self._step(x, t, nodes[: allowed_order(self.order, len(nodes), n - i, lower)])
            if s >= SIGMA_CAP:
                nodes = []
        return x

    def _integrand(self, s: float, x: Tensor, denoised: Tensor) -> Tensor:
        return denoised if self.integrates_data else (x - denoised) / s

    def _step(self, x: Tensor, t: float, nodes: Sequence[Node]) -> Tensor:
        s, h = nodes[0][0], math.log(nodes[0][0] / t)
        weights = expansion(-h if self.integrates_data else h, t, [node[0] for node in nodes], published=self.third == "published")
        scale = h if self.integrates_data else -t * h
        return combined(t / s if self.integrates_data else 1.0, x, [scale * w for w in weights], nodes)


def expansion(z: float, t: float, levels: Sequence[float], *, published: bool = False) -> list[float]:
    """What each node's value counts in the integral of exp(z ...) m over a step, in units of its length h = log(s / t).

    With D1, D2 the derivatives at s of the polynomial through the nodes, by divided differences in units of h:
        phi_1(z) m_0 + phi_2(z) D1 + phi_3(z) D2,    with two nodes phi_1(z) / 2 in the place of phi_2 (the papers' choice).

    Args:
        z: the exponent at the step's end.
        t: where the step ends.
        levels: the nodes' noise levels, the newest (s) first, one to three.
        published: halves D2 in its own term, as the papers' code has it.
    """
    h, first = math.log(levels[0] / t), phi(1, z)
    if len(levels) == 1:
        return [first]
    a = h / math.log(levels[1] / levels[0])  # u = a (m_0 - m_1)
    if len(levels) == 2:
        return [first + first / 2 * a, -first / 2 * a]
    b = h / math.log(levels[2] / levels[1])  # v = b (m_1 - m_2)
    r0, r1 = 1 / a, 1 / b
    curve = 2 / (r0 + r1)  # D2 = curve (u - v), D1 = u + r0 / 2 D2
    d2 = phi(3, z) / (2 if published else 1) * curve + phi(2, z) * r0 / 2 * curve
    d1 = phi(2, z)
    return [first + (d1 + d2) * a, -(d1 + d2) * a - d2 * b, d2 * b]


def combined(keep: float, x: Tensor, weights: Sequence[float], nodes: Sequence[Node]) -> Tensor:
    """keep x + sum of weights times the nodes' values, in place on one new tensor: such a step costs no more than its sums."""
    found = x * keep
    for weight, (_, value) in zip(weights, nodes, strict=True):
        found.add_(value, alpha=weight)
    return found


@dataclass(frozen=True, kw_only=True)
class Dpm(Multistep):
    """DPM-Solver in either prediction.

    Attributes:
        prediction: "data", DPM-Solver++, or "noise", the first DPM-Solver, which large guidance makes unstable.
    """

    name: ClassVar[str] = "dpm"

    prediction: Literal["data", "noise"] = option("data", "what is integrated")

    @property
    def integrates_data(self) -> bool:
        return self.prediction == "data"


@dataclass(frozen=True, kw_only=True)
class Dpmpp(Multistep):
    """DPM-Solver++: `dpm` with prediction "data"."""

    name: ClassVar[str] = "dpmpp"
