"""Adaptive DPM-Solver: steps as long as an estimate of their error allows. It runs in the pull form only: its calls depend on the data.

Paper    Lu et al. 2022, arXiv:2206.00927, appendix C.3 (Algorithm 3), noise prediction.
Pair     the third-order singlestep (r1 = 1/3, r2 = 2/3) against the second-order one on the same first point.
         e(u) = (x - D) / u; u_r = s exp(-r h); `exponential.phi`.
             low     x - t h phi_1(h) (e_s + (e_1 - e_s) / (2 r1))
             high    x - t h (phi_1(h) e_s + phi_2(h) (e_2 - e_s) / r2)
Control  E = root mean square of (high - low) / delta over an image, the largest of the batch, both at the network's scale;
         delta = max(absolute, relative max(|low|, |previous low|)). The step is kept where E <= 1; then h <- 0.9 h E^(-1/3).
Use      to know how many calls a model wants at a tolerance. A pipeline's loop has a fixed length, so this is no sampler of a recipe.
Cost     one call a step and two a try; one host synchronisation each, for E.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from vis_accel.errors import RunError, UsageError
from vis_accel.samplers.exponential import phi
from vis_accel.samplers.noise import SIGMA_CAP, Evaluation

__all__ = ["Adapted", "sample_adaptive"]

_R1, _R2 = 1 / 3, 2 / 3
_SAFETY, _MOST_TRIES = 0.9, 10_000


@dataclass(frozen=True)
class Adapted:
    """How a run ended.

    Attributes:
        x: the state at the last sigma.
        sigmas: the knots it chose.
        calls: of the denoiser, those of refused steps among them.
        refused: how many steps were tried in vain.
    """

    x: Tensor
    sigmas: tuple[float, ...]
    calls: int
    refused: int


def sample_adaptive(
    denoise: Callable[[Tensor, float], Tensor | Evaluation],
    x: Tensor,
    first: float,
    last: float,
    *,
    relative: float = 0.05,
    absolute: float = 0.0078,
    step: float = 0.05,
) -> Adapted:
    """Solves from sigma `first` to `last`.

    Args:
        denoise: D(x, sigma), data scale 1, as for `sample`.
        x: [B, ...], the state at `first`.
        first, last: falling, above 0; a last step to 0 is D itself and needs no control.
        relative, absolute: the tolerance; the paper's absolute one is two grey levels of 256 on [-1, 1].
        step: the first step, in log sigma.

    Raises:
        UsageError: sigmas that do not fall or reach 0 or infinity; a tolerance or step that is not above 0.
        RunError: the state is no longer finite, or no step is short enough.
    """
    if not 0 < last < first < SIGMA_CAP:
        raise UsageError(f"An adaptive run goes from one finite sigma down to another above 0; got {first} and {last}.")
    if min(relative, absolute, step) <= 0:
        raise UsageError(f"relative, absolute and step must be above 0; got {relative}, {absolute} and {step}.")
    s, h, refused, knots, before = first, step, 0, [first], x
    noise = _Noise(denoise)
    e = noise(x, s)
    for _ in range(_MOST_TRIES):
        t = max(last, s * math.exp(-h))
        h = math.log(s / t)
        low, high = _pair(noise, x, e, s, h)
        scale = 1 / math.hypot(1, t)
        error = _largest_error(low * scale, high * scale, before / math.hypot(1, s), relative, absolute)
        if not math.isfinite(error):
            raise RunError(f"The adaptive run is no longer finite at sigma = {s:.4g}.")
        if error <= 1:
            s, x, before = t, high, low
            knots.append(s)
            if s == last:
                return Adapted(x, tuple(knots), noise.calls, refused)
            e = noise(x, s)
        else:
            refused += 1
        h *= _SAFETY * max(error, 1e-6) ** (-1 / 3)
    raise RunError(f"The adaptive run made {_MOST_TRIES} tries and came to sigma = {s:.4g} only.", hint="a larger tolerance")


class _Noise:
    """e(x, sigma), counted."""

    def __init__(self, denoise: Callable[[Tensor, float], Tensor | Evaluation]) -> None:
        self.denoise, self.calls = denoise, 0

    def __call__(self, x: Tensor, sigma: float) -> Tensor:
        self.calls += 1
        answer = self.denoise(x, sigma)
        return (x - (answer.denoised if isinstance(answer, Evaluation) else answer)) / sigma


def _pair(noise: _Noise, x: Tensor, e: Tensor, s: float, h: float) -> tuple[Tensor, Tensor]:
    """The step of length h by both methods."""
    t = s * math.exp(-h)
    first, second = (s * math.exp(-r * h) for r in (_R1, _R2))
    d1 = noise(x - first * (_R1 * h) * phi(1, _R1 * h) * e, first) - e
    point = x - second * (_R2 * h) * (phi(1, _R2 * h) * e + _R2 / _R1 * phi(2, _R2 * h) * d1)
    d2 = noise(point, second) - e
    low = x - t * h * phi(1, h) * (e + d1 / (2 * _R1))
    return low, x - t * h * (phi(1, h) * e + phi(2, h) / _R2 * d2)


def _largest_error(low: Tensor, high: Tensor, before: Tensor, relative: float, absolute: float) -> float:
    delta = (relative * torch.maximum(low.abs(), before.abs())).clamp(min=absolute)
    ratio = ((high - low) / delta).square()
    rows = ratio.flatten(1).mean(1) if ratio.ndim > 1 else ratio
    return float(rows.max().sqrt())
