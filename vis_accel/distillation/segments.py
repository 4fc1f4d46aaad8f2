"""Segment distillation: a student whose one step is what its teacher's path does between two noise levels.

Papers   Luhman and Luhman 2021, arXiv:2101.02388, eq. 5: the ends of sampled paths as targets, here piece by piece. The target of a piece
         is the D of progressive distillation (Salimans and Ho 2022, arXiv:2202.00512, Algorithm 2; `progressive.two_steps`), over as many
         steps of any solver as the teacher took for it.
Landing  a step from s to t with DDIM's eta (Song et al. 2020, arXiv:2010.02502, eq. 16) follows the path down to
             t' = t sqrt(1 - eta^2 (1 - t^2 / s^2))
         and adds noise up to t again. So the target is the D that lands where the path passes t': at eta = 0 t itself, at eta = 1
         t^2 / s. The fresh noise hides what the step got wrong, and every step begins at images noised as in training.
Knots    and landings of the student lie among the knots of the path: each takes the place of the solver's nearest, so that a path costs
         what it costs without them.
Loss     the square of the network's output: (D_student - D)^2 in units of what the network predicts, for noise 1 / sigma^2, for v
         1 + 1 / sigma^2, for the image 1. All knots weigh about alike, and a network that predicts noise needs no conversion as long as
         its steps are several: the first one, of whose image the noise says little, ends where the noise is still large.
Cost     none of the teacher but for the paths.
Shapes   sigma B.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from vis_accel.distillation.space import PREDICTIONS
from vis_accel.errors import UnknownNameError, UsageError

__all__ = ["landings", "output_weight", "through"]


def landings(knots: Sequence[float], eta: float) -> tuple[float, ...]:
    """Where each step between `knots` follows the path to, before its noise is added: one number fewer than knots."""
    return tuple(t * math.sqrt(1 - eta**2 * (1 - (t / s) ** 2)) for s, t in pairwise(knots))


def through(knots: Sequence[float], wanted: Sequence[float]) -> tuple[float, ...]:
    """`knots` of a solver, falling, with the levels `wanted` among them in the place of the nearest inner ones (in log sigma).

    Raises:
        UsageError: fewer inner knots than are wanted.
    """
    own = [level for level in knots[1:-1] if level not in wanted]
    added = sorted({level for level in wanted if level not in knots}, reverse=True)
    if len(added) > len(own):
        raise UsageError(
            f"A path of {len(knots) - 1} steps cannot stop at each of the {len(wanted)} noise levels that the student needs.",
            hint=f"--sampler with {len(wanted) + 1} steps or more, better twice as many",
        )
    for level in added:
        own.remove(min(own, key=lambda there: abs(math.log(there / level))))
    kept = [level for level in knots[1:-1] if level in wanted]
    return (knots[0], *sorted((*own, *kept, *added), reverse=True), knots[-1])


def output_weight(sigma: Tensor, prediction: str) -> Tensor:
    """The weight of a squared error of D that makes it one of the network's output."""
    if prediction == "epsilon":
        return sigma.pow(-2)
    if prediction == "v_prediction":
        return 1 + sigma.pow(-2)
    if prediction == "sample":
        return sigma.new_ones(sigma.shape)
    raise UnknownNameError.of("prediction of a network to be distilled", prediction, PREDICTIONS)
