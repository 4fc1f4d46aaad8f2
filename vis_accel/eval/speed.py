"""Timing that can be believed: candidates interleaved in one process, paired ratios with an interval, a word when it is unstable.

Order      A round runs all candidates in a random order and then backwards (A B B A). The time of a candidate in a round is the mean of
           its two runs, so a drift that is linear over the round hits all sides alike.
Ratio      baseline time / candidate time per round (above 1: faster); its median, with the interval between order statistics (the sign
           test turned round): exact whatever the distribution, and a round that was interrupted moves it by one rank only.
           Fewer than 6 rounds cannot give 95%: the interval is then the range, and its `level` is what the range is worth.
First call apart: it holds compilation, autotuning, lazy set-up. `break_even` says after how many calls that has paid off.
Unstable   the four warnings of pyperf: spread of 10% of the mean, an extreme 50% off it, a value below 1 ms, too few values for 1%.

Unit: seconds. The clock may be given, so that all of this is testable without waiting.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import fmean, median, quantiles, stdev

from vis_accel.errors import UnknownNameError, UsageError
from vis_accel.eval.interval import Interval

__all__ = ["Timings", "interleave", "median_interval"]


@dataclass(frozen=True)
class Timings:
    """Times of all candidates, in seconds.

    Attributes:
        rounds: per label, the time in each round (mean of two runs); round i of all labels belong together.
        values: per label, every single run after the warm-up.
        first_call: per label, the very first call.
    """

    rounds: Mapping[str, tuple[float, ...]]
    values: Mapping[str, tuple[float, ...]]
    first_call: Mapping[str, float]

    def median(self, label: str) -> float:
        """Median time of a call."""
        return median(self._of(self.rounds, label))

    def spread(self, label: str) -> float:
        """Distance between the quartiles of the single runs."""
        values = self._of(self.values, label)
        low, _, high = quantiles(values, n=4, method="inclusive")
        return high - low

    def ratio(self, label: str, baseline: str) -> Interval:
        """How many times faster `label` is than `baseline`: the median over rounds of their ratio, with its interval; n is the rounds."""
        pairs = zip(self._of(self.rounds, baseline), self._of(self.rounds, label), strict=True)
        return median_interval([before / after for before, after in pairs])

    def break_even(self, label: str, baseline: str) -> int | None:
        """Calls after which the extra time of `label`'s first call over the baseline's has been won back; None: never."""
        extra = (self.first_call[label] - self.median(label)) - (self.first_call[baseline] - self.median(baseline))
        gain = self.median(baseline) - self.median(label)
        if extra <= 0:
            return 0 if gain >= 0 else None
        return math.ceil(extra / gain) if gain > 0 else None

    def unstable(self, label: str) -> list[str]:
        """Why the times of `label` are not to be trusted; empty if they are."""
        return _warnings(self._of(self.values, label))

    def _of(self, table: Mapping[str, tuple[float, ...]], label: str) -> tuple[float, ...]:
        if label not in table:
            raise UnknownNameError.of("timed candidate", label, table)
        return table[label]


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 2,
    seed: int = 0,
    budget_s: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
    sync: Callable[[], None] | None = None,
    prepare: Callable[[str], None] | None = None,
) -> Timings:
    """Times `candidates` against one another in this process.

    Args:
        candidates: label -> what is timed. Its result is dropped.
        rounds: how often each is timed, twice per round.
        warmup: untimed calls of each after the first call.
        seed: of the order within rounds.
        budget_s: no round is started that would not end within this many seconds of the first call; one round is always run.
        clock: seconds, from any origin.
        sync: waits for the device; called on both sides of every timing. By default the current accelerator's, if one is in use.
        prepare: called with the label before each call, untimed: it can switch what the label stands for on and off.

    Raises:
        UsageError: no candidates, or fewer than one round.
    """
    if not candidates or rounds < 1 or warmup < 0:
        raise UsageError(f"Timing needs candidates, rounds >= 1 and warmup >= 0; got {len(candidates)}, {rounds}, {warmup}.")
    labels, wait = list(candidates), sync or _synchronise

    def run(label: str) -> float:
        if prepare is not None:
            prepare(label)
        wait()
        start = clock()
        candidates[label]()
        wait()
        return clock() - start

    begin = clock()
    first = {label: run(label) for label in labels}
    for _ in range(warmup):
        for label in labels:
            run(label)
    shuffler, runs = random.Random(seed), {label: list[float]() for label in labels}
    for done in range(rounds):
        started = clock()
        order = shuffler.sample(labels, len(labels))
        for label in [*order, *reversed(order)]:
            runs[label].append(run(label))
        now = clock()
        if budget_s is not None and done + 1 < rounds and (now - begin) + (now - started) > budget_s:
            break
    means = {label: tuple((a + b) / 2 for a, b in zip(times[::2], times[1::2], strict=True)) for label, times in runs.items()}
    return Timings(means, {label: tuple(times) for label, times in runs.items()}, first)


def median_interval(values: list[float], level: float = 0.95) -> Interval:
    """The median with the narrowest pair of order statistics around it that cover the true one with probability `level`.

    With n values, the r-th smallest and the r-th largest cover the median unless fewer than r values fall on one side of it: probability
    1 - 2 P(Binomial(n, 1/2) < r). Up to 5 values, even the range covers less than 95%: the result's `level` then says how much.
    """
    if not values:
        raise UsageError("A median needs at least one value.")
    ordered, n = sorted(values), len(values)
    cut, tail = 0, 2.0**-n  # tail: P(Binomial(n, 1/2) <= cut)
    if 1 - 2 * tail < level:
        level = max(0.0, 1 - 2 * tail)
    while cut + 1 < n / 2 and 1 - 2 * (more := tail + math.comb(n, cut + 1) * 2.0**-n) >= level:
        cut, tail = cut + 1, more
    return Interval(median(ordered), ordered[cut], ordered[-1 - cut], n, level)


def _warnings(values: tuple[float, ...]) -> list[str]:
    mean = fmean(values)
    found = []
    spread = stdev(values) / mean if len(values) > 1 and mean > 0 else 0.0
    if spread >= 0.10:
        found.append(f"the standard deviation is {spread:.0%} of the mean")
    for extreme, word in ((min(values), "shortest"), (max(values), "longest")):
        if mean > 0 and abs(extreme - mean) >= 0.5 * mean:
            found.append(f"the {word} run is {abs(extreme - mean) / mean:.0%} off the mean")
    if min(values) < 1e-3:
        found.append(f"the shortest run took {min(values) * 1e3:.3g} ms, less than 1 ms")
    needed = math.ceil((1.96 * spread / 0.01) ** 2)
    if len(values) < max(2, needed):
        found.append(f"{len(values)} runs; the mean is known to 1% after {max(2, needed)}")
    return found


def _synchronise() -> None:
    import torch

    if torch.cuda.is_available() and not torch.cuda.is_initialized():
        return  # nothing runs there, and to ask would set up the device
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
