"""Whether one classifier is as often right as another on the same images: the difference of two paired shares, judged.

Two classifiers see the same n images; b of them only the first one gets right, c only the second. The difference is (c - b) / n. Its
interval is Tango's score interval (Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the
paired-sample design", Statistics in Medicine 17:891), the paired relative of Wilson's: all differences d that the score test of

    T(d) = (c - b - n d) / sqrt(n (2 q + d (1 - d)))        q: the likeliest share of "only the first", given that the difference is d

does not refuse. With b + c large it is the normal interval of the mean of per-image differences; with b = c = 0, where that one has no
width, it is +- z^2 / (n + z^2).
"""

from __future__ import annotations

import math
from statistics import NormalDist

from torch import Tensor

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.interval import Interval

__all__ = ["MARGIN", "paired_difference", "paired_interval", "verdict"]

MARGIN = 0.005  # of the images: the loss still called the same, half a point


def paired_difference(baseline: Tensor, candidate: Tensor, labels: Tensor, level: float = 0.95) -> Interval:
    """Accuracy of `candidate` minus that of `baseline` (predictions and labels: n whole numbers) on the same images.

    Raises:
        DataError: different lengths, or no images.
    """
    if not len(baseline) == len(candidate) == len(labels) or not len(labels):
        raise DataError(
            f"Both sides need a prediction for the same images; got {len(baseline)}, {len(candidate)} and {len(labels)} labels."
        )
    before, after = baseline == labels, candidate == labels
    return paired_interval(int((before & ~after).sum()), int((after & ~before).sum()), len(labels), level)


def paired_interval(lost: int, won: int, n: int, level: float = 0.95) -> Interval:
    """(won - lost) / n with Tango's score interval.

    Args:
        lost: images only the baseline gets right.
        won: images only the candidate gets right.
        n: all images.
        level: of the interval.

    Raises:
        UsageError: counts that cannot be.
    """
    if n < 1 or lost < 0 or won < 0 or lost + won > n:
        raise UsageError(f"A paired difference needs n >= 1 and lost + won <= n; got {lost}, {won} and {n}.")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    return Interval((won - lost) / n, -_limit(won, lost, n, z), _limit(lost, won, n, z), n, level)


def verdict(difference: Interval) -> str:
    """In words: whether the candidate may be called as good as the baseline, how much it loses, or that more images must tell."""
    low, high, points = 100 * difference.low, 100 * difference.high, 100 * difference.value
    if difference.low > 0:
        return f"better: gains {points:.1f} [{low:.1f}, {high:.1f}] points (95%), n = {difference.n}"
    if difference.low >= -MARGIN:
        return f"same: loses at most {-low:.1f} points (95%), n = {difference.n}"
    if difference.high < 0:
        return f"loses {-points:.1f} [{-high:.1f}, {-low:.1f}] points (95%), n = {difference.n}"
    return f"too few images to tell: between {-low:.1f} points lost and {high:.1f} won (95%), n = {difference.n}"


def _limit(lost: int, won: int, n: int, z: float) -> float:
    """The largest difference the score test does not refuse: T falls in d, so it is found by bisection."""
    low, high = (won - lost) / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(lost, won, n, middle) > -z else (low, middle)
    return low


def _score(lost: int, won: int, n: int, d: float) -> float:
    """T(d), for d above the observed difference; where d has no chance at all, minus infinity."""
    b = (lost + won) * (1 - d) - 2 * (n - won) * d
    q = (b + math.sqrt(max(0.0, b * b + 8 * n * lost * d * (1 - d)))) / (4 * n)  # the likeliest q: 2n q^2 - b q = lost d (1 - d)
    variance = n * (2 * q + d * (1 - d))
    gap = won - lost - n * d
    return gap / math.sqrt(variance) if variance > 0 else (0.0 if gap >= 0 else -math.inf)
