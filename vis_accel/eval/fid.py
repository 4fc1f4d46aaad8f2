"""Frechet distance between two sets of features, its interval, and the paired difference of two candidates.

    FID = |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^1/2)                Heusel et al. 2017, arXiv:1706.08500, eq. 6

Root       Tr (S1 S2)^1/2 as the sum of the square roots of the eigenvalues of S1^1/2 S2 S1^1/2: symmetric, so real and never negative.
           Covariances divide by n - 1. All sums are float64, whatever the features are.
Statistics (n, sum x, sum x x^T) of disjoint sets add up: batches, processes and cached real images merge exactly.
Interval   Delete-a-group jackknife, 20 groups: the distance without each group, each a subtraction of statistics, and Student's t with
           19 degrees of freedom. It is the interval of FID *at this n*, which is biased upwards by about C/n, the reference held fixed.
           The bootstrap is not used: repeating rows adds to that same bias, so its interval excludes the value it is of.
Groups     are drawn by a fixed permutation of 0..n-1, so images that come sorted by class are spread over all groups, and images of equal
           index (equal seed) of two candidates fall into the same group: what both share cancels in `paired_difference`.
Cost       21 eigenvalue problems of d x d; memory d x d and one group in float64.
Not        comparable between different n, references or feature networks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.interval import Interval, t_quantile

__all__ = [
    "GROUPS",
    "ROWS_PER_FEATURE",
    "Statistics",
    "fid_with_interval",
    "frechet_distance",
    "gather",
    "paired_difference",
    "real_floor",
]

GROUPS = 20  # of the jackknife
ROWS_PER_FEATURE = 20  # fewer images per feature than this and the bias of the distance outgrows what it measures: refused
_CHUNK = 8192  # rows in float64 at a time


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a Frechet distance needs of a set of features: n, the sum (d) and the sum of outer products (d x d), float64."""

    n: int
    sum: Tensor
    outer: Tensor

    @classmethod
    def zeros(cls, dim: int) -> Statistics:
        """The statistics of no features, d = `dim`."""
        return cls(0, torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64))

    @classmethod
    def of(cls, features: Tensor) -> Statistics:
        """The statistics of features (n x d).

        Raises:
            DataError: not n x d, or values that are not finite.
        """
        if features.ndim != 2:
            raise DataError(f"Features are n x d; got {tuple(features.shape)}.")
        total = cls.zeros(features.shape[1])
        for start in range(0, len(features), _CHUNK):
            x = features[start : start + _CHUNK].detach().cpu().double()
            if not x.isfinite().all():
                raise DataError(f"{int((~x.isfinite()).any(dim=1).sum())} of {len(x)} feature rows are not finite (NaN or infinite).")
            total += cls(len(x), x.sum(dim=0), x.T @ x)
        return total

    def __add__(self, other: Statistics) -> Statistics:
        self._same_space(other)
        return Statistics(self.n + other.n, self.sum + other.sum, self.outer + other.outer)

    def __sub__(self, other: Statistics) -> Statistics:
        self._same_space(other)
        if other.n > self.n:
            raise UsageError(f"Cannot take {other.n} images out of {self.n}.")
        return Statistics(self.n - other.n, self.sum - other.sum, self.outer - other.outer)

    def _same_space(self, other: Statistics) -> None:
        if self.dim != other.dim:
            raise UsageError(f"These statistics are of different feature networks: {self.dim} and {other.dim} features.")

    @property
    def dim(self) -> int:
        """d, the number of features."""
        return len(self.sum)

    @property
    def mean(self) -> Tensor:
        """Mean (d)."""
        return self.sum / self.n

    @property
    def covariance(self) -> Tensor:
        """Covariance (d x d), divided by n - 1."""
        return (self.outer - torch.outer(self.sum, self.mean)) / (self.n - 1)


def frechet_distance(a: Statistics, b: Statistics) -> float:
    """FID between two sets; 0 for equal ones.

    Raises:
        UsageError: different feature dimension, or fewer than 20 images per feature in either set.
    """
    _enough(a, "The first set")
    _enough(b, "The second set")
    return _Target(b).distance(a)


def fid_with_interval(features: Tensor, reference: Statistics) -> Interval:
    """FID of features (n x d) against a reference, with its 95% jackknife interval at this n.

    Raises:
        UsageError: fewer than 20 images per feature, or another feature dimension than the reference's.
        DataError: features that are not finite.
    """
    total, target = Statistics.of(features), _Target(reference)
    _enough(total, "The candidate")
    _enough(reference, "The reference")
    left = [target.distance(total - Statistics.of(features[rows])) for rows in _groups(len(features))]
    return _jackknife(target.distance(total), left, len(features))


def paired_difference(features_a: Tensor, features_b: Tensor, reference: Statistics) -> Interval:
    """FID of `features_a` minus FID of `features_b` (both n x d; row i of both was made from the same seed), with its 95% interval.

    Raises:
        UsageError: sets of different size (not comparable), fewer than 20 images per feature.
        DataError: features that are not finite.
    """
    if features_a.shape != features_b.shape:
        raise UsageError(f"A pair has the same seeds on both sides; got {tuple(features_a.shape)} and {tuple(features_b.shape)}.")
    a, b, target = Statistics.of(features_a), Statistics.of(features_b), _Target(reference)
    _enough(a, "Each candidate")
    _enough(reference, "The reference")
    left = [
        target.distance(a - Statistics.of(features_a[rows])) - target.distance(b - Statistics.of(features_b[rows]))
        for rows in _groups(len(features_a))
    ]
    return _jackknife(target.distance(a) - target.distance(b), left, len(features_a))


def real_floor(features: Tensor, reference: Statistics, n: int) -> float:
    """The least FID that n images can reach: that of n held-out real images, drawn at random from `features` (m x d, m >= n).

    Raises:
        UsageError: fewer than n held-out images.
    """
    if len(features) < n:
        raise UsageError(f"The floor at n = {n} needs {n} held-out real images; there are {len(features)}.")
    return frechet_distance(Statistics.of(features[_shuffled(len(features))[:n]]), reference)


def gather(statistics: Statistics, accelerator: Any) -> Statistics:
    """The statistics of all processes together, on every process: one sum of float64 numbers over an `accelerate.Accelerator`."""
    dim = statistics.dim
    packed = torch.cat([torch.tensor([statistics.n], dtype=torch.float64), statistics.sum, statistics.outer.flatten()])
    summed = accelerator.reduce(packed.to(accelerator.device), reduction="sum").cpu()
    return Statistics(round(float(summed[0])), summed[1 : dim + 1], summed[dim + 1 :].reshape(dim, dim))


class _Target:
    """One side of the distance with its root taken once, for the 21 distances of a jackknife."""

    def __init__(self, statistics: Statistics) -> None:
        self.dim, self.mean = statistics.dim, statistics.mean
        covariance = statistics.covariance
        values, vectors = torch.linalg.eigh(covariance)
        self.root = vectors * values.clamp(min=0).sqrt() @ vectors.T
        self.trace = covariance.trace()

    def distance(self, other: Statistics) -> float:
        if other.dim != self.dim:
            raise UsageError(f"The reference was made by another feature network: {self.dim} features; these are {other.dim}.")
        covariance = other.covariance
        eigenvalues = torch.linalg.eigvalsh(self.root @ covariance @ self.root)
        traces = covariance.trace() + self.trace - 2 * eigenvalues.clamp(min=0).sqrt().sum()
        return max(0.0, float((other.mean - self.mean).square().sum() + traces))  # rounding alone can go below 0


def _enough(statistics: Statistics, whose: str) -> None:
    needed = ROWS_PER_FEATURE * statistics.dim
    if statistics.n < needed:
        raise UsageError(
            f"{whose} has {statistics.n} images; a Frechet distance in {statistics.dim} features needs at least {needed}.",
            hint="more images, or KID and the paired scores, which speak for few",
        )


def _shuffled(n: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))


def _groups(n: int) -> list[Tensor]:
    """Rows of each group; the same for every set of n."""
    return list(_shuffled(n).tensor_split(GROUPS))


def _jackknife(value: float, left: list[float], n: int) -> Interval:
    """value +- t sqrt((g - 1) / g sum (theta_(j) - mean theta)^2), theta_(j) the estimate without group j."""
    estimates, g = torch.tensor(left, dtype=torch.float64), len(left)
    half = t_quantile(0.975, g - 1) * float(((g - 1) / g * (estimates - estimates.mean()).square().sum()).sqrt())
    return Interval(value, value - half, value + half, n)
