"""Tables of noise levels: the beta schedules that discrete-time networks are trained on.

Papers   Ho et al. 2020, arXiv:2006.11239 (linear); Rombach et al. 2022, arXiv:2112.10752 (scaled_linear);
         Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 17 (squaredcos_cap_v2); Xu et al. 2022, arXiv:2203.02923 (sigmoid);
         Lin et al. 2024, arXiv:2305.08891, Algorithm 1 (zero terminal signal-to-noise ratio).
Output   sigma[t] = sqrt((1 - abar_t) / abar_t), t = 0 .. T-1, abar_t = prod_{i<=t} (1 - beta_i): noise over signal, rising.
Differs  everything is computed in float64 (Python floats); diffusers' float32 products are off by up to 1e-3 at t = 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from operator import mul


def _linspace(start: float, end: float, n: int) -> list[float]:
    return [start + (end - start) * i / (n - 1) for i in range(n)] if n > 1 else [start]


def _linear(start: float, end: float, n: int) -> list[float]:
    return _linspace(start, end, n)


def _scaled_linear(start: float, end: float, n: int) -> list[float]:
    return [b * b for b in _linspace(math.sqrt(start), math.sqrt(end), n)]


def _squaredcos_cap_v2(start: float, end: float, n: int) -> list[float]:
    abar = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return [min(1 - abar[i + 1] / abar[i], 0.999) for i in range(n)]  # the cap is the paper's


def _sigmoid(start: float, end: float, n: int) -> list[float]:
    return [(end - start) / (1 + math.exp(-u)) + start for u in _linspace(-6.0, 6.0, n)]


SCHEDULES: dict[str, Callable[[float, float, int], list[float]]] = {
    "linear": _linear,
    "scaled_linear": _scaled_linear,
    "squaredcos_cap_v2": _squaredcos_cap_v2,
    "sigmoid": _sigmoid,
}


def sigma_table(betas: Sequence[float], *, zero_terminal_snr: bool = False, infinity: float = math.inf) -> tuple[float, ...]:
    """The noise-to-signal ratio at every discrete time.

    Args:
        betas: T noise variances in (0, 1), t = 0 first.
        zero_terminal_snr: rescale so that nothing of the image is left at t = T-1 (Lin et al., Algorithm 1).
        infinity: the number that stands for the ratio where no signal is left.

    Returns:
        T floats, strictly rising.
    """
    abar = list(accumulate((1.0 - b for b in betas), mul))
    if zero_terminal_snr:
        first, last = math.sqrt(abar[0]), math.sqrt(abar[-1])
        abar = [((math.sqrt(a) - last) * first / (first - last)) ** 2 for a in abar]
    return tuple(math.sqrt((1 - a) / a) if a > 0 else infinity for a in abar)
