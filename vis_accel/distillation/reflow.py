"""Reflow: a student whose paths are straight lines between the ends of its teacher's paths.

Paper    Liu et al. 2022, arXiv:2209.03003, eq. 1 and Algorithm 1 with the coupling of a model's own flow (2-rectified flow).
Pair     noise e and image x0 that one path of the teacher joins. In the paper's coordinates z = (1 - s) x0 + s e, s uniform over 0 .. 1,
         and the network's velocity shall be e - x0, all along the line.
Space    with sigma = s / (1 - s) the line is x = x0 + sigma e at data scale 1, which is any network's input up to a factor, at the time of
         that noise level; and a D of any parametrisation stands for the velocity (z - D) / s = (x - (1 + sigma) D) / sigma. So the student
         keeps the network, its times and what it predicts: at the start it is its teacher. Straight in z is straight in x against sigma,
         and a step of Euler on the velocity is one of DDIM on D.
End      sigma stops at the largest level S of the network: e is what takes the end of the path to its start, (start - x0) / S, and the line
         ends in the start itself.
Weight   1 for the velocity. A network that predicts noise makes an error of (1 + sigma) times its own, without bound near pure noise, which
         would be all that it learned; it gets (1 - s)^2, which makes that its own error.
Measure  sum over the steps of ds |v - (z_1 - z_0)|^2 (the paper's S, sec. 2.3): 0 where one step goes as far as all.
Differs  s goes to the nearest whole time of the network; a network of the flow kind is not needed.
Shapes   x, D, e B x ...; s, sigma B; a path is K + 1 points and K images.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from vis_accel.distillation.space import along

__all__ = ["curvature", "nearest", "noise_of", "velocity", "weight"]


def nearest(share: Tensor, table: Tensor) -> Tensor:
    """The place in `table`, rising noise levels, whose s = sigma / (1 + sigma) is nearest to each of `share` (any shape)."""
    levels = table / (1 + table)
    above = torch.searchsorted(levels, share.contiguous()).clamp(1, len(levels) - 1)
    return above - (share - levels[above - 1] < levels[above] - share).long()


def noise_of(starts: Tensor, ends: Tensor, highest: float) -> Tensor:
    """The noise e of pairs: the line ends + sigma e meets `starts` at sigma = `highest`."""
    return (starts - ends) / highest


def velocity(image: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """dz/ds that D = `image` at x stands for; sigma above 0."""
    s = along(sigma, x)
    return (x - (1 + s) * image) / s


def weight(sigma: Tensor, prediction: str) -> Tensor:
    """What the square of a velocity's error is multiplied by, for a network that predicts `prediction`."""
    return (1 + sigma).pow(-2) if prediction == "epsilon" else torch.ones_like(sigma)


def curvature(points: Sequence[Tensor], images: Sequence[Tensor], sigmas: Sequence[float]) -> Tensor:
    """How far each path is from straight (B), a mean over its numbers.

    Args:
        points: x at each of `sigmas`, K + 1.
        images: D at all but the last, K.
        sigmas: noise levels, falling, the last may be 0.
    """
    shares = [level / (1 + level) for level in sigmas]
    whole = (points[0] / (1 + sigmas[0]) - points[-1] / (1 + sigmas[-1])) / (shares[0] - shares[-1])
    total = points[0].new_zeros(len(points[0]))
    for (s, t), x, image, level in zip(pairwise(shares), points, images, sigmas, strict=False):
        found = velocity(image, x, torch.full((len(x),), level, device=x.device, dtype=x.dtype))
        total = total + (s - t) * (found - whole).square().flatten(1).mean(1)
    return total
