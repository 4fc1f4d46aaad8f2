"""How long a benchmark will take, and how many images its time allows: measured on the machine at hand before it starts.

A run costs calls x c + d seconds an image: c for one call of the denoiser, d for all that happens once (decoding, features). Both
come from two short stock runs of different length.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vis_accel.errors import UsageError

__all__ = ["Cost", "choose_n", "parse_duration", "spoken"]

LONGEST_UNASKED = 3600.0  # seconds a benchmark may take without a --budget that allows it
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Cost:
    """Seconds an image: `call` for each call of the denoiser, `once` for the rest."""

    call: float
    once: float

    @classmethod
    def fit(cls, short: tuple[int, float], long: tuple[int, float]) -> Cost:
        """From two runs, each (calls, seconds an image)."""
        if long[0] <= short[0]:
            return cls(long[1] / long[0], 0.0)
        call = max(1e-6, (long[1] - short[1]) / (long[0] - short[0]))
        return cls(call, max(0.0, short[1] - short[0] * call))

    def image(self, calls: int) -> float:
        """Seconds for one image."""
        return calls * self.call + self.once


def choose_n(
    *,
    cost: Cost,
    calls: Sequence[int],
    most: int,
    smallest: int,
    few: int,
    fixed: float,
    samples: int | None,
    budget: float | None,
    left: float,
) -> tuple[int, float]:
    """How many images each row gets, and the seconds that will take.

    Args:
        cost: of an image.
        calls: of each row whose images must be generated.
        most: largest n that makes sense (as many as the baseline has features for).
        smallest: the smallest n an FID is printed for.
        few: n if not even `smallest` can be had: paired scores only.
        fixed: seconds that do not depend on n: timing.
        samples: what was asked for; None: as many as the budget allows.
        budget: what was asked for, in seconds; None: `left` is the default one's rest and nothing was asked.
        left: seconds left of the budget.

    Raises:
        UsageError: what was asked for takes longer than it may.
    """
    each = sum(cost.image(count) for count in calls)
    if samples is not None:
        seconds = fixed + samples * each
        allowed = left if budget is not None else LONGEST_UNASKED
        if seconds > allowed:
            fitting = int((allowed - fixed) / each)
            fewer = f"--samples {fitting}, or " if fitting >= 2 else ""
            message = f"{samples} images a row would take about {spoken(seconds)}, longer than {spoken(allowed)}."
            raise UsageError(message, hint=f"{fewer}--budget {spoken(seconds * 1.2)}")
        return samples, seconds
    affordable = int((left - fixed) / each)
    n = min(most, affordable)
    if n < most:
        n = n // 100 * 100
    if n < smallest:
        n = min(few, affordable)
    if n < 2:
        message = f"The budget allows no row: timing alone takes {spoken(fixed)}, and an image of every row {each:.2g} s."
        raise UsageError(message, hint=f"--budget {spoken(fixed + 10 * each + 60)}")
    return n, fixed + n * each


def parse_duration(text: str) -> float:
    """Seconds of "90s", "5m", "1.5h" or "300".

    Raises:
        UsageError: for anything else, or nothing.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip().lower())
    if not found or float(found[1]) <= 0:
        raise UsageError(f"A budget is a time such as 90s, 5m or 2h; got {text!r}.")
    return float(found[1]) * _UNITS[found[2] or "s"]


def spoken(seconds: float) -> str:
    """ "40s", "4m", "1.5h": rounded up, and readable by `parse_duration`."""
    if seconds < 100:
        return f"{max(1, round(seconds + 0.5))}s"
    if seconds < 5400:
        return f"{int(seconds / 60) + 1}m"
    return f"{seconds / 3600 + 0.05:.1f}h"
