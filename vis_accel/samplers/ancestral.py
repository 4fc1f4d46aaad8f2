"""Ancestral Euler: the sampler of k-diffusion that goes further down than it must, and comes back up with fresh noise.

Source   k-diffusion (Crowson 2022), sample_euler_ancestral; a step split into a deterministic and a noisy part as in Karras et al. 2022,
         arXiv:2206.00364, Algorithm 2, the noise that of the posterior.
Space    data scale 1:  up = eta t sqrt(1 - t^2 / s^2),  down^2 = t^2 - up^2,  x_t = D + down (x - D) / s + up z.
Same     written so, it is DDIM with that eta, and with eta = 1 DDPM with the small fixed variance: one method under three names. It is here
         because people know it by this one.
Cost     one call a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vis_accel.method import option
from vis_accel.samplers.ddim import Ddim


@dataclass(frozen=True, kw_only=True)
class EulerAncestral(Ddim):
    """Ancestral Euler: `ddim` with eta = 1 unless told otherwise.

    Attributes:
        eta: the share of fresh noise, 0 (plain Euler) .. 1.
    """

    name: ClassVar[str] = "euler-ancestral"

    eta: float = option(1.0, "the share of fresh noise", low=0, high=1)
