"""Which calls of a run are computed in full: every so many, more of them around a centre, or a set that was searched for a model.

Centre   Ma et al. 2023, arXiv:2312.00858, the non-uniform strategy of section 3.3: with k full calls of n and the centre c, the k points
         l_1 .. l_k are evenly spaced from (-c)^(1/p) to (n - c)^(1/p), the last left out, and the calls are round(l^p + c). Roots and
         powers keep the sign. p = 1 is uniform.
Search   exchange on the true error: one full call is moved at a time, to wherever the end of whole runs comes nearest to the uncached
         end, until no move helps. A local optimum, found in about 2 k calls of `error` a round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

__all__ = ["LAST", "centred", "exchange"]

LAST = 2  # calls at the end of a run that are always full: they write the fine detail, and nothing corrects them


def centred(calls: int, interval: int, centre: float, power: float) -> tuple[int, ...]:
    """The full calls of a run.

    Args:
        calls: n, calls of the run.
        interval: one call in so many is full: k = ceil(n / interval).
        centre: c / n, 0 .. 1: where they lie densest, as a share of the run.
        power: p >= 1: how much denser.
    """
    c, count = centre * calls, math.ceil(calls / interval)
    low, high = _signed(-c, 1 / power), _signed(calls - c, 1 / power)
    points = (_signed(low + k * (high - low) / count, power) + c for k in range(count))
    return tuple(sorted({min(max(round(point), 0), calls - 1) for point in points}))


def exchange(calls: int, full: Iterable[int], error: Callable[[tuple[int, ...]], float], rounds: int = 4) -> tuple[tuple[int, ...], float]:
    """Moves full calls until no single move makes `error` smaller.

    Args:
        calls: of the run; its first call and its last `LAST` are full in any case and not moved.
        full: where to begin.
        error: of a run with these full calls.
        rounds: through all of them, at most.

    Returns:
        The calls, ascending, and their error.
    """
    best = tuple(sorted({call for call in full if 0 < call < calls - LAST}))
    least = error(best)
    for _ in range(rounds):
        before = best
        for call in before:
            for other in (call - 1, call + 1, call - 2, call + 2):
                moved = tuple(sorted({*best} - {call} | {other}))
                if call not in best or other in best or not 0 < other < calls - LAST:
                    continue
                if (found := error(moved)) < least:
                    best, least = moved, found
        if best == before:
            break
    return best, least


def _signed(value: float, power: float) -> float:
    return math.copysign(abs(value) ** power, value)
