"""Singlestep DPM-Solver: each step makes its own evaluations in between and remembers nothing.

Paper    Lu et al. 2022, arXiv:2206.00927, Algorithms 1 (DPM-Solver-2) and 2 (DPM-Solver-3), noise prediction.
Space    data scale 1; h = log(s / t); e(u) = (x - D) / u at sigma u; u_r = s exp(-r h); `exponential.phi`, so e^h - 1 = h phi_1(h).
Step     order 2    r = 1/2      x_r = x - u_r (r h) phi_1(r h) e_s
                                 x_t = x - t h phi_1(h) (e_s + (e_r - e_s) / (2 r))
         order 3    r1 = 1/3, r2 = 2/3
                                 x_1 = x - u_1 (r1 h) phi_1(r1 h) e_s
                                 x_2 = x - u_2 (r2 h) (phi_1(r2 h) e_s + r2 phi_2(r2 h) (e_1 - e_s) / r1)
                                 x_t = x - t h (phi_1(h) e_s + phi_2(h) (e_2 - e_s) / r2)
         r2 must be 2/3 for this two-term form to be of order 3.
Differs  an edit of x between two evaluations of one step moves the end of the step by as much as it moved the point in between.
Cost     `order` calls a step, one for the step to 0 and for a step from infinity.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from vis_accel.method import option
from vis_accel.samplers import schedules
from vis_accel.samplers.exponential import phi
from vis_accel.samplers.noise import NoiseModel
from vis_accel.samplers.solver import SIGMA_CAP, Noise, Past, Reply, Request, Solve, Solver


@dataclass(frozen=True, kw_only=True)
class Singlestep(Solver):
    """Singlestep DPM-Solver.

    Attributes:
        order: 2 or 3, also the number of calls a step.
    """

    name: ClassVar[str] = "singlestep"

    order: Literal[2, 3] = option(2, "the order, and the number of calls a step")

    @property
    def convergence_order(self) -> int:
        return self.order

    def auto_schedule(self, noise: NoiseModel) -> str:
        """Equal steps of log sigma, the variable of the expansion, wherever the first sigma is finite."""
        return schedules.where_finite("logsnr", noise)

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        for s, t in pairwise(sigmas):
            x, y = yield x, s
            if t == 0 or s >= SIGMA_CAP:
                x = t / s * x + (1 - t / s) * y.denoised
            else:
                e = (x - y.denoised) / s
                x = yield from (_second if self.order == 2 else _third)(x, e, s, t)
        return x


def _second(x: Tensor, e: Tensor, s: float, t: float) -> Solve:
    h, r = math.log(s / t), 1 / 2
    x, e_r = yield from _evaluate(x, s, r, h, phi(1, r * h) * e)
    return x - t * h * phi(1, h) * (e + (e_r - e) / (2 * r))


def _third(x: Tensor, e: Tensor, s: float, t: float) -> Solve:
    h, r1, r2 = math.log(s / t), 1 / 3, 2 / 3
    x, e_1 = yield from _evaluate(x, s, r1, h, phi(1, r1 * h) * e)
    x, e_2 = yield from _evaluate(x, s, r2, h, phi(1, r2 * h) * e + r2 / r1 * phi(2, r2 * h) * (e_1 - e))
    return x - t * h * (phi(1, h) * e + phi(2, h) / r2 * (e_2 - e))


def _evaluate(x: Tensor, s: float, r: float, h: float, slope: Tensor) -> Generator[Request, Reply, tuple[Tensor, Tensor]]:
    """Asks for the noise at u_r, reached from x along `slope`; returns x, moved by what was done to the point, and the noise."""
    u = s * math.exp(-r * h)
    point = x - u * (r * h) * slope
    back, y = yield point, u
    return x + (back - point), (back - y.denoised) / u
