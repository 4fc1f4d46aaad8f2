"""SDE-DPM-Solver++: the multistep solver of the reverse stochastic equation, one network call a step.

Paper    Lu et al. 2022, arXiv:2211.01095, appendix B (SDE-DPM-Solver++), data prediction.
Space    data scale 1; lambda = -log sigma, h = lambda_t - lambda_s, D1 and D2 as in `dpm`, and `exponential.phi`:
             x_t = (t/s)^2 x + 2 h (phi_1(-2h) m0 + phi_2(-2h) D1 + phi_3(-2h) D2) + t sqrt(1 - e^(-2h)) z
         order 2 takes phi_1 / 2 for phi_2, the papers' "midpoint".
Order    of the drift; with fresh noise in every step, no path converges faster than its first order.
Same     order 1 is `ddpm` (fixed-small): asserted to 1e-10.
Differs  order 3 has the weights of the expansion. diffusers 0.42.1 has the last one with the wrong sign (- 1/2 for + 1/2), which makes its
         order 3 of first order.
Limits   order 3 extrapolates a quickly forgotten past: with steps of h > 0.5 (fewer than 20 over all noise levels) it can overshoot.
Cost     one call a step; the last `order` - 1 evaluations are kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from vis_accel.samplers.dpm import FEW_STEPS, Multistep, Node, allowed_order, combined, expansion
from vis_accel.samplers.solver import SIGMA_CAP, Noise, Past, Solve, draw


@dataclass(frozen=True, kw_only=True)
class DpmSde(Multistep):
    """SDE-DPM-Solver++, multistep."""

    name: ClassVar[str] = "dpm-sde"

    @property
    def convergence_order(self) -> int:
        return 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.third != "exact":
            raise self.refused("third", "must be exact: the published third order of this solver has a sign error")

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        n = len(sigmas) - 1
        lower = self.lower_order_final and n < FEW_STEPS
        nodes: list[Node] = [(s, d) for s, _, d in reversed(history)]  # newest first
        for i, (s, t) in enumerate(pairwise(sigmas)):
            x, y = yield x, s
            nodes = [(s, y.denoised), *nodes][: self.order]
            if t == 0:
                return y.denoised
            keep = (t / s) ** 2
            if s >= SIGMA_CAP:
                x, nodes = keep * x + (1 - keep) * y.denoised, []
            else:
                nodes_used = nodes[: allowed_order(self.order, len(nodes), n - i, lower)]
                x = combined(keep, x, drift(t, nodes_used), nodes_used)
            x = x + t * math.sqrt(1 - keep) * draw(noise, x)
        return x


def drift(t: float, nodes: Sequence[Node]) -> list[float]:
    """What each of the denoised images at `nodes` (newest first, one to three) counts in the step to t."""
    h = math.log(nodes[0][0] / t)
    return [2 * h * weight for weight in expansion(-2 * h, t, [node[0] for node in nodes])]
