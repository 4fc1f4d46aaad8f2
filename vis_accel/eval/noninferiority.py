"""The one rule that may say "same quality".

Two-sided non-inferiority: the 95% interval of FID_candidate - FID_baseline, paired on equal seeds, lies within +-3% of
(FID_baseline - floor), where floor is the FID of as many held-out real images: what is above it is the baseline's own distance.
A claim needs n >= 5,000 images; fewer claim nothing, whatever the interval says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from vis_accel.errors import UsageError
from vis_accel.eval.interval import Interval

__all__ = ["LEAST_IMAGES", "Verdict", "same_quality"]

LEAST_IMAGES = 5_000
Outcome = Literal["same", "different (worse)", "different (better)", "undecided", "n too small"]


@dataclass(frozen=True)
class Verdict:
    """What may be claimed, and why.

    Attributes:
        outcome: "same", "different (worse)", "different (better)", "undecided" or "n too small".
        difference: FID_candidate - FID_baseline.
        bound: the difference still called the same, in FID.
        reason: one sentence.
    """

    outcome: Outcome
    difference: Interval
    bound: float
    reason: str

    @property
    def same(self) -> bool:
        """True for the claim of equal quality and for nothing else."""
        return self.outcome == "same"


def same_quality(difference: Interval, baseline_fid: float, floor: float, margin: float = 0.03) -> Verdict:
    """Judges a candidate by the paired difference of its FID to the baseline's.

    Args:
        difference: `paired_difference(candidate, baseline, reference)`.
        baseline_fid: FID of the baseline at the same n.
        floor: `real_floor(...)` at the same n.
        margin: share of (baseline_fid - floor) that still counts as the same.

    Raises:
        UsageError: an interval below 95%, a margin outside (0, 1), numbers that are not finite.
    """
    if difference.level < 0.95 or not 0 < margin < 1:
        raise UsageError(f"A verdict needs a 95% interval and a margin in (0, 1); got {difference.level:.0%} and {margin}.")
    if not all(map(math.isfinite, (difference.low, difference.high, baseline_fid, floor))):
        raise UsageError(f"A verdict needs finite numbers; got {difference}, {baseline_fid}, {floor}.")
    bound = margin * (baseline_fid - floor)
    outcome, reason = _judge(difference, bound, margin)
    return Verdict(outcome, difference, max(0.0, bound), reason)


def _judge(difference: Interval, bound: float, margin: float) -> tuple[Outcome, str]:
    low, high = difference.low, difference.high
    if difference.n < LEAST_IMAGES:
        return "n too small", f"no claim: {difference.n} images; a claim needs at least {LEAST_IMAGES}"
    if bound <= 0:
        return "undecided", "the baseline is as close to the reference as held-out real images are: no margin is left to measure against"
    span = f"the difference, {low:+.3g} to {high:+.3g},"
    allowed = f"+-{bound:.3g} ({margin:.0%} of the baseline's distance above the floor)"
    if -bound <= low and high <= bound:
        return "same", f"{span} lies within {allowed}"
    if low > bound:
        return "different (worse)", f"{span} lies above {allowed}"
    if high < -bound:
        return "different (better)", f"{span} lies below {allowed}"
    return "undecided", f"{span} crosses the edge of {allowed}: more images would decide"
