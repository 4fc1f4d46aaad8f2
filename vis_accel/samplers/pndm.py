"""PNDM and PLMS: Adams-Bashforth on the noise with the weights of equal steps, started by more calls instead of lower orders.

Papers   Liu et al. 2022, arXiv:2202.09778: F-PNDM, Algorithm 2, eq. 12 to 14. PLMS is the variant of CompVis's latent diffusion (Rombach et
         al. 2022, arXiv:2112.10752), whose first step is the improved Euler step of the paper's S-PNDM and whose second and third are
         Adams-Bashforth of orders 2 and 3.
Space    data scale 1, in which the paper's transfer map (DDIM) is x_t = x + (t - s) e, e = (x - D) / sigma.
Start    pndm    three steps, each of four calls: the classical Runge-Kutta method of order 4 in sigma; its first slope enters the history
         plms    one step of two calls: the mean of the noise here and at the end of a DDIM step
         then the weights of `ipndm`. Without a start both are ipndm: so is a run that goes on from a later knot.
Order    2 on any grid but equal steps of sigma, as for `ipndm`.
Differs  the middle of a Runge-Kutta step is that of sigma, the paper's that of the time. In the step to 0 the result is D.
Cost     pndm n + 9 calls from four steps on, plms n + 1 from two on; a step to 0 or from infinity takes one.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from vis_accel.samplers.adams import Ipndm
from vis_accel.samplers.solver import SIGMA_CAP, Noise, Past, Reply, Request, Solve, Solver

_ORDER = 4
_Slope = Generator[Request, Reply, tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class _Started(Ipndm):
    """What `pndm` and `plms` share: `ipndm` of order 4 behind a start."""

    warm_steps: ClassVar[int]

    def resumed(self) -> Solver:
        return Ipndm(steps=self.steps, schedule=self.schedule, order=self.order)

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        nodes = [(s, (u - d) / s) for s, u, d in reversed(history)]  # newest first
        cold = 0 if nodes else self.warm_steps
        for s, t in pairwise(sigmas):
            x, y = yield x, s
            if t == 0:
                return y.denoised
            e = (x - y.denoised) / s
            nodes = [(s, e), *nodes][: self.order]
            euler = y.denoised + t * e
            if s >= SIGMA_CAP:
                x, nodes = euler, []
            elif cold > 0:
                cold -= 1
                x = yield from self.start(x, e, euler, s, t)
            else:
                weights = self.weights(t, [node for node, _ in nodes])
                x = euler + sum((t - s) * w * (older - e) for w, (_, older) in zip(weights[1:], nodes[1:], strict=True))
        return x

    @abstractmethod
    def start(self, x: Tensor, e: Tensor, euler: Tensor, s: float, t: float) -> Solve:
        """One step of the start, with the noise e known at s and `euler` where a DDIM step ends."""


@dataclass(frozen=True, kw_only=True)
class Pndm(_Started):
    """F-PNDM: three Runge-Kutta steps, then Adams-Bashforth."""

    name: ClassVar[str] = "pndm"
    warm_steps: ClassVar[int] = 3

    def start(self, x: Tensor, e: Tensor, euler: Tensor, s: float, t: float) -> Solve:
        middle = (s + t) / 2
        x, second = yield from _slope(x, x + (middle - s) * e, middle)
        x, third = yield from _slope(x, x + (middle - s) * second, middle)
        x, fourth = yield from _slope(x, x + (t - s) * third, t)
        return x + (t - s) / 6 * (e + 2 * second + 2 * third + fourth)


@dataclass(frozen=True, kw_only=True)
class Plms(_Started):
    """PLMS: one improved Euler step, then Adams-Bashforth."""

    name: ClassVar[str] = "plms"
    warm_steps: ClassVar[int] = 1

    def start(self, x: Tensor, e: Tensor, euler: Tensor, s: float, t: float) -> Solve:
        x, there = yield from _slope(x, euler, t)
        return x + (t - s) / 2 * (e + there)


def _slope(x: Tensor, point: Tensor, u: float) -> _Slope:
    """Asks for the noise at `point`, level u; returns x, moved by what was done to the point, and the noise."""
    back, y = yield point, u
    return x + (back - point), (back - y.denoised) / u
