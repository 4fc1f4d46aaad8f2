"""Closed forms that samplers are held to: a 1-D Gaussian mixture whose probability flow is known to machine precision."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from scipy.optimize import brentq
from scipy.special import ndtr
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """Data sum_i w_i N(m_i, q_i^2). In one dimension the flow carries quantiles, so it needs no reference solver."""

    w: tuple[float, ...] = (0.4, 0.6)
    m: tuple[float, ...] = (-1.0, 0.7)
    q: tuple[float, ...] = (0.35, 0.5)

    def denoise(self, x: Tensor, sigma: float) -> Tensor:
        var = [q * q + sigma * sigma for q in self.q]
        log_p = torch.stack([math.log(w) - (x - m) ** 2 / (2 * v) - 0.5 * math.log(v) for w, m, v in zip(self.w, self.m, var, strict=True)])
        means = torch.stack([(q * q * x + sigma * sigma * m) / v for q, m, v in zip(self.q, self.m, var, strict=True)])
        return (torch.softmax(log_p, dim=0) * means).sum(dim=0)

    def cdf(self, x: float, sigma: float) -> float:
        return sum(w * float(ndtr((x - m) / math.hypot(q, sigma))) for w, m, q in zip(self.w, self.m, self.q, strict=True))

    def flow(self, x: float, s: float, t: float) -> float:
        """Where the probability flow takes x from sigma s to sigma t."""
        quantile = self.cdf(x, s)
        reach = 40 * max(1.0, t)
        return float(brentq(lambda u: self.cdf(u, t) - quantile, -reach, reach, xtol=1e-15, rtol=1e-15, maxiter=300))


@pytest.fixture(scope="session")
def mixture() -> Mixture:
    return Mixture()
