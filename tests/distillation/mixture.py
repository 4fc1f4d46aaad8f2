"""A 1-D Gaussian mixture for rows with noise levels of their own: its denoiser and its exact flow, in double precision."""

from __future__ import annotations

import math

import torch
from scipy.optimize import brentq
from scipy.special import ndtr
from torch import Tensor

W, M, Q = (0.4, 0.6), (-1.0, 0.7), (0.35, 0.5)


def denoise(x: Tensor, sigma: Tensor) -> Tensor:
    """E[image | x] of x (B x 1) at sigma (B)."""
    s2 = sigma.reshape(-1, 1).square()
    w, m, q2 = (torch.tensor(values, dtype=x.dtype) for values in (W, M, [q * q for q in Q]))
    variance = q2 + s2
    share = torch.softmax(w.log() - (x - m).square() / (2 * variance) - variance.log() / 2, dim=1)
    return (share * (q2 * x + s2 * m) / variance).sum(dim=1, keepdim=True)


def draw(count: int, generator: torch.Generator) -> Tensor:
    """Samples of the mixture (B x 1)."""
    which = (torch.rand(count, 1, generator=generator, dtype=torch.float64) < W[1]).long()
    noise = torch.randn(count, 1, generator=generator, dtype=torch.float64)
    return torch.tensor(M, dtype=torch.float64)[which] + torch.tensor(Q, dtype=torch.float64)[which] * noise


def flow(x: float, s: float, t: float) -> float:
    """Where the probability flow takes x from sigma s to sigma t: in one dimension it carries quantiles."""

    def cdf(u: float, sigma: float) -> float:
        return sum(w * float(ndtr((u - m) / math.hypot(q, sigma))) for w, m, q in zip(W, M, Q, strict=True))

    quantile = cdf(x, s)
    return float(brentq(lambda u: cdf(u, t) - quantile, -40 * max(1.0, s), 40 * max(1.0, s), xtol=1e-13))
