"""Several steps of a consistency function: to the end of the path, back up to the next knot with fresh noise, and on.

Papers   Song et al. 2023, arXiv:2303.01469, Algorithm 1; Luo et al. 2023, arXiv:2310.04378, Algorithm 3.
Step     at knot s, with D the network's answer, f its consistency function (`vis_accel.distillation.consistency`) and t the next knot:
             x' = f + t z,     and the last step gives f itself.
         With `fresh` below 1 part of the noise is what x has of it already, e = (x - f) / s:  x' = f + t (sqrt(1 - fresh^2) e + fresh z).
         At 0 every step stays near the path of the first, and so near what one step gives.
Needs    a network that was trained to answer with the end of the path. On any other D is the mean of all images that fit x, and so is the
         result: that is why the recipe's method `distilled` puts student and sampler on together, and no row of the registry leads here.
Knots    whole times k i - 1 among those the student was trained at, spaced as diffusers' LCMScheduler spaces them.
Cost     one call a step.    Differs: the papers' t is sqrt(t^2 - sigma_0^2), which is t to the last digits that images have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from vis_accel.method import option
from vis_accel.samplers.noise import NoiseModel
from vis_accel.samplers.solver import Noise, Past, Solve, Solver, draw

__all__ = ["Consistency"]


@dataclass(frozen=True, kw_only=True)
class Consistency(Solver):
    """Multi-step consistency sampling.

    Attributes:
        boundary: how f is made of D: "lcm" (on latents, D itself at every knot) or "edm" (on pixels).
        fresh: 1 is the papers'.
        data_std: of the images, for "edm".
    """

    name: ClassVar[str] = "consistency"

    boundary: Literal["lcm", "edm"] = option("lcm", "how the function is made of the network's answer")
    fresh: float = option(1.0, "the share of fresh noise", low=0, high=1)
    lowest: float = option(0.0, "the noise level where the function is the identity, for edm", low=0)
    data_std: float = option(0.5, "the standard deviation of the images, for edm", above=0)

    @property
    def convergence_order(self) -> int:
        return 1

    def auto_schedule(self, noise: NoiseModel) -> str:
        return "trailing"

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        for s, t in pairwise(sigmas):
            x, y = yield x, s
            end = self.function(x, y.denoised, s)
            if t > 0 and self.fresh < 1:
                end = end + t * math.sqrt(1 - self.fresh**2) * (x - end) / s
            x = end + t * self.fresh * draw(noise, x) if t > 0 and self.fresh > 0 else end
        return x

    def function(self, x: Tensor, image: Tensor, sigma: float) -> Tensor:
        """f of D = `image` at x."""
        if self.boundary == "lcm":
            return image
        q2, over = self.data_std**2, sigma - self.lowest
        return q2 / (over**2 + q2) * x + over / sigma * (image - q2 / (sigma**2 + q2) * x)
