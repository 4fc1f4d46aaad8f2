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
Fast     the paper's DPM-Solver-fast (appendix D.3): steps of order 3 as long as the calls last, `steps` = n being the number of calls. With
         K = floor(n / 3) + 1 the orders are  3 (K - 2 times), 2, 1 | 3 (K - 1 times), 1 | 3 (K - 1 times), 2  for n mod 3 = 0 | 1 | 2.
         The schedule's n + 1 knots are cut where steps begin; those between give way to the points of the step. By log sigma the K steps
         are equally long, as in the paper. A run that ends at 0 gets there by a call, so a last 2 becomes 1, 1: also two calls.
Differs  an edit of x between two evaluations of one step moves the end of the step by as much as it moved the point in between.
Cost     `order` calls a step, one for the step to 0 and for a step from infinity; fast: n.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
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
        fast: the paper's bookkeeping: `steps` is the number of calls, most of them in steps of order 3, the last ones of lower orders.
    """

    name: ClassVar[str] = "singlestep"

    order: Literal[2, 3] = option(2, "the order, and the number of calls a step")
    fast: bool = option(False, "whether steps are calls, spent on steps of order 3 as far as they last")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fast and self.order != 3:
            raise self.refused("fast", "needs order=3, the order of most of its steps", hint="singlestep(order=3, fast=True)")
        if self.fast and self.afs:
            raise self.refused("afs", "must be False with fast=True, whose first step has order 3")

    @property
    def convergence_order(self) -> int:
        """2 where it is fast: of two numbers of calls in three the last step is of order 1."""
        return 2 if self.fast else self.order

    def auto_schedule(self, noise: NoiseModel) -> str:
        """Equal steps of log sigma, the variable of the expansion, wherever the first sigma is finite."""
        return schedules.where_finite("logsnr", noise)

    def all_knots(self, steps: int | None, noise: NoiseModel) -> tuple[float, ...]:
        if not self.fast or isinstance(self.schedule, tuple):
            return super().all_knots(steps, noise)
        name = self.auto_schedule(noise) if self.schedule == "auto" else self.schedule
        calls = self.steps or steps or 0
        if name not in ("logsnr", "exponential") or calls < 1:
            return super().all_knots(steps, noise)
        orders = fast_orders(calls, to_zero=True)
        outer = schedules.create(name, len(orders), noise)
        return (*(u for p, (s, t) in zip(orders, pairwise(outer), strict=True) for u in _points(s, t, p)), outer[-1])

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        for order, s, t in self.steps_of(sigmas):
            x, y = yield x, s
            if t == 0 or s >= SIGMA_CAP:
                x = t / s * x + (1 - t / s) * y.denoised
            elif order == 1:
                x = x - t * math.log(s / t) * phi(1, math.log(s / t)) * ((x - y.denoised) / s)
            else:
                e = (x - y.denoised) / s
                x = yield from (_second if order == 2 else _third)(x, e, s, t)
        return x

    def steps_of(self, sigmas: Sequence[float]) -> list[tuple[int, float, float]]:
        """Order, beginning and end of every step of a run over these knots."""
        if not self.fast:
            return [(self.order, s, t) for s, t in pairwise(sigmas)]
        infinite = sigmas[0] >= SIGMA_CAP  # the step from there has one call
        orders = [1] * infinite + fast_orders(len(sigmas) - 1 - infinite, to_zero=sigmas[-1] == 0)
        ends = [sigmas[i] for i in accumulate(orders)]
        return list(zip(orders, (sigmas[0], *ends), ends, strict=False))


def fast_orders(calls: int, *, to_zero: bool) -> list[int]:
    """The orders of the steps of DPM-Solver-fast with so many calls; their sum is `calls`."""
    threes, rest = divmod(calls, 3)
    if rest == 0:
        return [3] * (threes - 1) + [2, 1] if calls else []
    last = [1, 1] if rest == 2 and to_zero else [rest]
    return [3] * threes + last


def _points(s: float, t: float, order: int) -> list[float]:
    """Where a step of this order from s to t asks for evaluations; one to 0 at its beginning."""
    return [s * (t / s) ** (i / order) for i in range(order)] if t > 0 else [s]


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
