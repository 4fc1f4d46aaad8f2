"""Kernel distance between two sets of features: unbiased, so it may be stated for a few hundred images.

    KID = E k(x, x') + E k(y, y') - 2 E k(x, y),   k(x, y) = (x . y / d + 1)^3        Binkowski et al. 2018, arXiv:1801.01401, sec. 3

Estimate   Both sets are shuffled, each by its own fixed permutation, and cut into equally many disjoint blocks of at most 1,000 rows; each
           pair of blocks gives the unbiased estimate (their eq. 4); the mean is the value and Student's t over blocks its interval. Blocks
           are disjoint, so their estimates are independent, unlike the overlapping subsets of the usual implementation.
           The value can be below 0: that is what unbiased means for equal sets.
Cost       n / 1000 products of 1000 x d x 1000; memory three 1000 x 1000 matrices, whatever n is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.interval import Interval, RunningMean

__all__ = ["kid", "kid_difference", "mmd_squared"]

BLOCK = 1000  # rows of a block at most
BLOCKS = 10  # at least, so that the interval has nine degrees of freedom
LEAST = 10 * BLOCKS  # rows of a set


def mmd_squared(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy (float64 scalar) between x (m x d) and y (k x d), for the kernel above."""
    m, k = len(x), len(y)
    xx, yy, xy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    within = (xx.sum() - xx.trace()) / (m * (m - 1)) + (yy.sum() - yy.trace()) / (k * (k - 1))
    return within - 2 * xy.mean()


def kid(features: Tensor, reference: Tensor) -> Interval:
    """KID between features (n x d) and real features (m x d), with its 95% interval; n of the result is that of `features`.

    Raises:
        UsageError: fewer than 100 rows in either set, or different d.
        DataError: features that are not finite.
    """
    estimates = _block_estimates(features, reference, max(len(features), len(reference)))
    return _interval(estimates, len(features))


def kid_difference(features_a: Tensor, features_b: Tensor, reference: Tensor) -> Interval:
    """KID of `features_a` minus KID of `features_b` (row i of both from the same seed), with its 95% interval over equal blocks.

    Raises:
        UsageError: sets of different size, fewer than 100 rows, or different d.
        DataError: features that are not finite.
    """
    if features_a.shape != features_b.shape:
        raise UsageError(f"A pair has the same seeds on both sides; got {tuple(features_a.shape)} and {tuple(features_b.shape)}.")
    longest = max(len(features_a), len(reference))
    estimates = _block_estimates(features_a, reference, longest) - _block_estimates(features_b, reference, longest)
    return _interval(estimates, len(features_a))


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _block_estimates(features: Tensor, reference: Tensor, longest: int) -> Tensor:
    for rows, whose in ((features, "features"), (reference, "real features")):
        if rows.ndim != 2 or rows.shape[1] != features.shape[1]:
            raise UsageError(f"Both sets are n x d with one d; got {tuple(features.shape)} and {tuple(reference.shape)}.")
        if len(rows) < LEAST:
            raise UsageError(f"KID needs at least {LEAST} {whose}; got {len(rows)}.")
        if not rows.isfinite().all():
            raise DataError(f"{int((~rows.isfinite()).any(dim=1).sum())} rows of the {whose} are not finite (NaN or infinite).")
    count = min(max(BLOCKS, -(-longest // BLOCK)), len(features) // 10, len(reference) // 10)  # blocks of 10 rows at least
    # Two permutations: with one, sets that come class by class would be cut into blocks of matching classes, and seem closer than they are.
    blocks = zip(_blocks(features, count, seed=0), _blocks(reference, count, seed=1), strict=True)
    # A short set against a very long one would need blocks of the long one beyond BLOCK rows: those rows are left out.
    return torch.stack([mmd_squared(x[:BLOCK].double().cpu(), y[:BLOCK].double().cpu()) for x, y in blocks])


def _blocks(rows: Tensor, count: int, seed: int) -> list[Tensor]:
    """`count` disjoint random blocks: a set may come sorted by class."""
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return [rows[part] for part in order.tensor_split(count)]


def _interval(estimates: Tensor, n: int) -> Interval:
    found = RunningMean.of(estimates).interval()
    return Interval(found.value, found.low, found.high, n, found.level)
