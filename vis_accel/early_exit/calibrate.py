"""Thresholds that keep a promise: accuracy falls by at most epsilon, with probability at least 1 - delta over the calibration images.

Source   risk control for early exits: Jazbec et al. 2024, "Fast yet Safe: Early-Exiting with Risk Control", arXiv:2405.20915; the bound is
         Clopper and Pearson 1934's. Fixed-sequence testing (Angelopoulos et al. 2021, arXiv:2110.01052, section 2) goes from the safest
         threshold down and stops at the first that fails, so no correction for many tests is needed. What is tried is fixed beforehand: a
         ladder taken from the calibration images themselves would bend the test.
Loss     of an image: 1 if the full model is right and the exit it leaves by is wrong. Its mean bounds the loss of accuracy from above:
         images that only the exit gets right are not counted in its favour.
Shapes   n calibration images, E exits; exit logits E x n x classes, final logits n x classes, labels n.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vis_accel.early_exit.criteria import score
from vis_accel.errors import UsageError

__all__ = ["Policy", "clopper_pearson", "leave", "losses_allowed", "quantile_thresholds", "risk_controlled"]

_LADDER = 1000  # thresholds tried, from the safest down
_SAFEST = 1e-4  # the first one's distance from certainty, as a share of the scale


@dataclass(frozen=True)
class Policy:
    """A threshold and what it did to the calibration images.

    Attributes:
        threshold: shared by all exits; None: no threshold passed, nobody leaves early.
        risk: share of images the full model gets right and the exit wrong; `bound`: its upper confidence bound.
        gap: accuracy of the full model minus accuracy with exits.
        histogram: share of images that leave by each exit; the last is the full model.
    """

    threshold: float | None
    risk: float
    bound: float
    gap: float
    histogram: tuple[float, ...]


def clopper_pearson(successes: int, n: int, delta: float) -> float:
    """The upper bound p of a binomial share: P(Binomial(n, p) <= successes) = delta, exact, one-sided.

    Raises:
        UsageError: n below 1, successes outside 0 .. n, delta outside (0, 1).
    """
    if n < 1 or not 0 <= successes <= n or not 0 < delta < 1:
        raise UsageError(f"A bound needs n >= 1, 0 <= successes <= n, 0 < delta < 1; got {n}, {successes}, {delta}.")
    if successes == n:
        return 1.0
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(successes + 1)]

    def at_most(p: float) -> float:
        terms = [log + k * math.log(p) + (n - k) * math.log1p(-p) for k, log in enumerate(logs)]
        top = max(terms)
        return math.exp(top) * math.fsum(math.exp(term - top) for term in terms)

    low, high = successes / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if 0 < middle < 1 and at_most(middle) > delta:
            low = middle
        else:
            high = middle
    return high


def losses_allowed(n: int, epsilon: float, delta: float) -> int:
    """The most losses among n images whose upper bound is still at most epsilon; -1: not even none would do (n is too small).

    The bound of k losses is at most epsilon exactly where P(Binomial(n, epsilon) <= k) <= delta.
    """
    total, losses = 0.0, -1
    while losses < n:
        k = losses + 1
        log = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(epsilon) + (n - k) * math.log1p(-epsilon)
        total += math.exp(log)
        if total > delta:
            break
        losses = k
    return losses


def leave(scores: Tensor, thresholds: Sequence[float | None]) -> Tensor:
    """The exit each image leaves by (n, int64), from scores E x n; E stands for the full model. NaN reaches no threshold."""
    exits = torch.full((scores.shape[1],), len(scores), dtype=torch.int64)
    for index in reversed(range(len(scores))):
        threshold = thresholds[index]
        if threshold is not None:
            exits[scores[index] >= threshold] = index
    return exits


def risk_controlled(exit_logits: Tensor, final_logits: Tensor, labels: Tensor, *, criterion: str, epsilon: float, delta: float) -> Policy:
    """The lowest threshold whose risk is at most epsilon, with confidence 1 - delta.

    Raises:
        UsageError: epsilon or delta outside (0, 1).
    """
    if not (0 < epsilon < 1 and 0 < delta < 1):
        raise UsageError(f"epsilon and delta lie between 0 and 1; got {epsilon} and {delta}.")
    scores = torch.stack([score(logits, criterion) for logits in exit_logits])
    allowed = losses_allowed(len(labels), epsilon, delta)
    found: float | None = None
    ladder = _ladder(criterion, exit_logits.shape[2])
    for level, lost in zip(ladder.tolist(), _losses(scores, ladder, exit_logits, final_logits, labels), strict=True):
        if lost > allowed:
            break
        found = level
    return _policy(scores, exit_logits, final_logits, labels, found, delta)


def quantile_thresholds(exit_logits: Tensor, share: float) -> tuple[float, ...]:
    """Thresholds of the confidence at which `share` of the images that reach an exit leave by it (n calibration images)."""
    alive, found = torch.ones(exit_logits.shape[1], dtype=torch.bool), []
    for logits in exit_logits:
        scores = score(logits, "confidence")
        reaching = scores[alive & scores.isfinite()]
        found.append(float(torch.quantile(reaching, 1 - share)) if len(reaching) else math.inf)
        alive &= ~(scores >= found[-1])
    return tuple(found)


def _ladder(criterion: str, classes: int) -> Tensor:
    """Thresholds from the safest down to one that everybody reaches, finer towards certainty."""
    tail = torch.logspace(math.log10(_SAFEST), 0, _LADDER, dtype=torch.float64)
    return -math.log(classes) * tail if criterion == "entropy" else 1 - tail


def _losses(scores: Tensor, ladder: Tensor, exit_logits: Tensor, final_logits: Tensor, labels: Tensor) -> list[int]:
    """For each threshold, how many images the full model gets right and the exit they leave by wrong.

    An image leaves by exit k where the threshold lies above all its earlier scores but not above the k-th. So its losses are told by the
    highest score up to each exit.
    """
    highest = scores.double().nan_to_num(nan=-math.inf).cummax(dim=0).values
    lost = (exit_logits.argmax(dim=2) != labels) & (final_logits.argmax(dim=1) == labels)
    counts = torch.zeros(len(ladder), dtype=torch.int64)
    for index, wrong in enumerate(lost):
        counts += (highest[index, wrong] >= ladder[:, None]).sum(dim=1)
        if index:
            counts -= (highest[index - 1, wrong] >= ladder[:, None]).sum(dim=1)
    return [int(count) for count in counts]


def _policy(scores: Tensor, exit_logits: Tensor, final_logits: Tensor, labels: Tensor, threshold: float | None, delta: float) -> Policy:
    n, depth = len(labels), len(scores)
    exits = leave(scores, [threshold] * depth)
    everything = torch.cat((exit_logits, final_logits[None]))
    right = everything[exits, torch.arange(n)].argmax(dim=1) == labels
    final = final_logits.argmax(dim=1) == labels
    lost = int((final & ~right).sum())
    histogram = tuple((torch.bincount(exits, minlength=depth + 1) / n).tolist())
    gap = float(final.double().mean() - right.double().mean())
    return Policy(threshold, lost / n, clopper_pearson(lost, n, delta), gap, histogram)
