"""What a measured number is: a value, an interval that says how far it can be trusted, and the number of samples behind it.

Student's t is computed here, without scipy: its distribution function for whole degrees of freedom is a finite sum
(Abramowitz and Stegun 26.7.3 and 26.7.4), inverted by bisection; above 200 degrees of freedom the expansion 26.7.5 is exact to 1e-7.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

from torch import Tensor

from vis_accel.errors import DataError, UsageError

__all__ = ["Interval", "RunningMean", "mean_interval", "t_quantile"]


@dataclass(frozen=True)
class Interval:
    """A value with the interval that covers the true one with probability `level`, from `n` samples."""

    value: float
    low: float
    high: float
    n: int
    level: float = 0.95

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"

    @property
    def width(self) -> float:
        """high - low."""
        return self.high - self.low


@dataclass(frozen=True)
class RunningMean:
    """Mean and spread of a stream of numbers: count, mean, sum of squared deviations; two streams merge by addition.

    The merge is that of Chan, Golub and LeVeque (1979), which does not cancel as a sum of squares would.
    """

    n: int = 0
    mean: float = 0.0
    deviations: float = 0.0

    @classmethod
    def of(cls, values: Tensor) -> RunningMean:
        """The mean of one batch (any shape).

        Raises:
            DataError: a value that is not finite.
        """
        if not values.isfinite().all():
            raise DataError(f"{int((~values.isfinite()).sum())} of {values.numel()} values are not finite.")
        if not values.numel():
            return cls()
        flat = values.detach().flatten().double().cpu()
        mean = flat.mean()
        return cls(flat.numel(), float(mean), float((flat - mean).square().sum()))

    def __add__(self, other: RunningMean) -> RunningMean:
        n = self.n + other.n
        if n == 0:
            return self
        shift = other.mean - self.mean
        mean = self.mean + shift * other.n / n
        return RunningMean(n, mean, self.deviations + other.deviations + shift * shift * self.n * other.n / n)

    def interval(self, level: float = 0.95) -> Interval:
        """Mean +- t times its standard error.

        Raises:
            UsageError: fewer than two values.
        """
        if self.n < 2:
            raise UsageError(f"An interval needs at least 2 values; got {self.n}.")
        error = math.sqrt(self.deviations / (self.n - 1) / self.n)
        half = t_quantile(0.5 + level / 2, self.n - 1) * error
        return Interval(self.mean, self.mean - half, self.mean + half, self.n, level)


def mean_interval(batches: Iterable[Tensor], level: float = 0.95) -> Interval:
    """The mean of all values in `batches` with its t interval."""
    return sum((RunningMean.of(batch) for batch in batches), RunningMean()).interval(level)


@lru_cache(maxsize=1024)
def t_quantile(p: float, df: int) -> float:
    """The number below which Student's t with `df` degrees of freedom falls with probability `p`, in (0, 1).

    Raises:
        UsageError: p or df out of range.
    """
    if not 0 < p < 1 or df < 1:
        raise UsageError(f"A t quantile needs 0 < p < 1 and df >= 1; got {p} and {df}.")
    if p < 0.5:
        return -t_quantile(1 - p, df)
    if df > 200:
        z = NormalDist().inv_cdf(p)
        return (
            z
            + (z**3 + z) / (4 * df)
            + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
            + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
        )
    low, high = 0.0, math.pi / 2  # the angle atan(t / sqrt(df)): bounded, so bisection always ends
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _central(middle, df) < 2 * p - 1 else (low, middle)
    return math.sqrt(df) * math.tan((low + high) / 2)


def _central(theta: float, df: int) -> float:
    """P(|t| < sqrt(df) tan theta)."""
    sin, cos = math.sin(theta), math.cos(theta)
    term = cos if df % 2 else 1.0
    total = term if df > 1 else 0.0
    for k in range(3 if df % 2 else 2, df - 1, 2):
        term *= (k - 1) / k * cos * cos
        total += term
    return 2 / math.pi * (theta + sin * total) if df % 2 else sin * total
