"""Precision and recall, density and coverage: is what was generated real-looking, and is all that is real generated?

    manifold(S)   the union of balls around each point of S, each reaching to its k-th nearest neighbour in S
    precision     share of generated points inside manifold(real), k = 3        Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 1-3
    recall        share of real points inside manifold(generated), k = 3
    density       mean number of real balls (k = 5) a generated point lies in, / k   Naeem et al. 2020, arXiv:2002.09797, eq. 3
    coverage      share of real balls (k = 5) with a generated point inside           ibid., eq. 4

Both sets must be of one size: the balls shrink as a set grows. A dropped mode shows in recall and coverage, noise in precision and density.
Cost    3 n^2 distances of d features, in strips of 8 MB; memory does not grow beyond n x d.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vis_accel.errors import DataError, UsageError

__all__ = ["Coverage", "precision_recall"]

K_PRECISION = 3
K_DENSITY = 5
_STRIP = 1_000_000  # distances at a time, 8 bytes each


@dataclass(frozen=True)
class Coverage:
    """Precision, recall and coverage in [0, 1]; density from 0, about 1 for equal distributions. n of each set."""

    precision: float
    recall: float
    density: float
    coverage: float
    n: int


def precision_recall(generated: Tensor, real: Tensor) -> Coverage:
    """Compares two sets of features (both n x d).

    Raises:
        UsageError: sets of different shape, or of no more than 5 points.
        DataError: features that are not finite.
    """
    if generated.ndim != 2 or generated.shape != real.shape:
        raise UsageError(
            f"Precision and recall need two sets of one size; got {tuple(generated.shape)} and {tuple(real.shape)}.",
            hint="the rows of a reference's subset are in random order: subset[:n]",
        )
    n = len(real)
    if n <= K_DENSITY:
        raise UsageError(f"Precision and recall need more than {K_DENSITY} images; got {n}.")
    if not (generated.isfinite().all() and real.isfinite().all()):
        raise DataError("Some features are not finite (NaN or infinite).")
    centre = real.double().mean(dim=0)  # distances do not change, their rounding does
    fake, true = generated.double() - centre, real.double() - centre
    fake_3, _ = _radii(fake)
    true_3, true_5 = _radii(true)
    precise = 0
    balls = 0
    recalled = torch.zeros(n, dtype=torch.bool, device=real.device)
    covered = torch.zeros_like(recalled)
    for rows, distance in _strips(fake, true):
        precise += int((distance <= true_3).any(dim=1).sum())
        inside = distance <= true_5
        balls += int(inside.sum())
        covered |= inside.any(dim=0)
        recalled |= (distance <= fake_3[rows, None]).any(dim=0)
    return Coverage(precise / n, float(recalled.double().mean()), balls / (K_DENSITY * n), float(covered.double().mean()), n)


def _strips(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Squared distances of a few rows of x (n x d) to all of y (m x d) at a time."""
    step = max(1, _STRIP // len(y))
    squares = y.square().sum(dim=1)
    for start in range(0, len(x), step):
        rows = slice(start, min(start + step, len(x)))
        part = x[rows]
        yield rows, (part.square().sum(dim=1, keepdim=True) + squares - 2 * part @ y.T).clamp(min=0)


def _radii(x: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distance of every point (n x d) to its 3rd and its 5th nearest other point."""
    nearest = []
    for rows, distance in _strips(x, x):
        distance[torch.arange(len(distance)), torch.arange(rows.start, rows.stop)] = torch.inf  # a point is not its own neighbour
        nearest.append(distance.topk(K_DENSITY, dim=1, largest=False).values)
    found = torch.cat(nearest)
    return found[:, K_PRECISION - 1], found[:, K_DENSITY - 1]
