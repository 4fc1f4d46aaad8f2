"""Consistency distillation: a network that takes any point of a path to its end, in one call.

Papers   Song et al. 2023, arXiv:2303.01469: the function (sec. 3, appendix C), Algorithm 2 (distillation), Algorithm 1 (several steps);
         Luo et al. 2023, arXiv:2310.04378 (LCM): on latents, along the guided equation (eq. 9 to 14), with leaps over k training times;
         Song and Dhariwal 2023, arXiv:2310.14189, eq. 7: the pseudo-Huber distance and its width.
Function f(x, sigma_0) = x at the last knot, by construction. On latents (LCM, appendix; diffusers' LCMScheduler has the same numbers)
             f = c_skip x + c_out D,     c_skip = q^2 / ((10 t)^2 + q^2),   c_out = 10 t / sqrt((10 t)^2 + q^2),   q = 1/2
         which is the identity at t = 0 and D at any other time; on pixels (Song et al. 2023, appendix C) with EDM's network F
             f = c_skip x + c_out F,     c_skip = q^2 / ((sigma - sigma_0)^2 + q^2),   c_out = q (sigma - sigma_0) / sqrt(sigma^2 + q^2)
         and F read from D by EDM's own scales (Karras et al. 2022, arXiv:2206.00364, table 1). In both a student that has the teacher's
         weights is the teacher's D but for the last knot.
Target   x_n+1 = image + sigma_n+1 z;  x_n = one step of the teacher's solver, with guidance;  f(x_n+1) shall be f_target(x_n), f_target
         being a moving average of the student, and what has no gradient.
Ends     at the largest noise the target may be the end of the teacher's whole path instead, where that was sampled before (Luhman and
         Luhman 2021, arXiv:2101.02388, eq. 5): exact, free, and where the chain of targets is longest.
Differs  pseudo-Huber instead of LPIPS, which needs a network that is downloaded.
Shapes   B x ... for images, B for sigma and times.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vis_accel.distillation.space import along
from vis_accel.errors import UsageError

__all__ = ["edm_function", "grid_times", "huber_width", "inference_indices", "lcm_function", "pseudo_huber"]

DATA_STD = 0.5  # q, of both papers
TIME_SCALING = 10.0
_WIDTH = 0.00054  # Song and Dhariwal 2023, sec. 3.3


def grid_times(knots: int, times: int) -> tuple[int, ...]:
    """Network times of the knots: 0, where f is the identity, then k - 1, 2k - 1, ..., T - 1 with k = T / knots.

    Raises:
        UsageError: knots that do not divide T.
    """
    if not 2 <= knots <= times or times % knots:
        near = [n for n in range(2, times + 1) if times % n == 0 and n <= 100]
        raise UsageError(f"The knots of a consistency student must divide its network's {times} times; got {knots}.", hint=f"one of {near}")
    leap = times // knots
    return (0, *(leap * i - 1 for i in range(1, knots + 1)))


def inference_indices(steps: int, knots: int) -> tuple[int, ...]:
    """Which knots a run of `steps` calls asks for, falling, the last knot (0) not among them: the spacing of diffusers' LCMScheduler.

    Raises:
        UsageError: more steps than knots.
    """
    if not 1 <= steps <= knots:
        raise UsageError(f"A consistency student of {knots} knots takes 1 .. {knots} steps; got {steps}.")
    return tuple(knots - i * knots // steps for i in range(steps))


def lcm_function(x: Tensor, image: Tensor, time: Tensor) -> Tensor:
    """f of D = `image` at the network times `time`: the identity at time 0."""
    scaled = along(TIME_SCALING * time, x)
    total = scaled.square() + DATA_STD**2
    return DATA_STD**2 / total * x + scaled / total.sqrt() * image


def edm_function(x: Tensor, image: Tensor, sigma: Tensor, lowest: float) -> Tensor:
    """f of D = `image`: the identity at sigma = `lowest`."""
    s, q2 = along(sigma, x), DATA_STD**2
    skip = q2 / ((s - lowest).square() + q2)
    return skip * x + (s - lowest) / s * (image - q2 / (s.square() + q2) * x)


def huber_width(dimensions: int) -> float:
    """c for images of that many numbers."""
    return _WIDTH * math.sqrt(dimensions)


def pseudo_huber(difference: Tensor, width: float) -> Tensor:
    """sqrt(|d|^2 + c^2) - c of each row (B): a square near 0, the length far away."""
    return torch.sqrt(difference.flatten(1).square().sum(dim=1) + width**2) - width
