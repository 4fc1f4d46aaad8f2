"""Where a solver's knots lie: n+1 strictly falling noise levels, sigma = noise / signal.

Times    leading, trailing, linspace (Lin et al. 2024, arXiv:2305.08891, table 2) and quadratic (Song et al. 2020, arXiv:2010.02502,
         appendix D.2) choose whole network times; their sigmas are the table's own. Trailing starts at the last time, where the input
         is what the network was trained on as pure noise; leading starts up to T/n below it.
         beta takes the quantiles of Beta(0.6, 0.6) (Lee et al. 2024, arXiv:2407.12173, sec. 4.2): dense at both ends. diffusers 0.42.1 puts
         these quantiles between the sigmas instead of the times, which is another schedule. time-power is linear in the square root of
         the time (Zhang and Chen 2022, arXiv:2204.13902, appendix H.3, kappa = 2), whole or not.
Sigmas   logsnr (Lu et al. 2022, arXiv:2206.00927, sec. 3.4) is geometric in sigma; karras (Karras et al. 2022, arXiv:2206.00364,
         eq. 5, rho = 7) is linear in sigma^(1/7). Both need a finite first sigma.
Tables   ays: ten steps found for one model each (Sabour et al. 2024, arXiv:2404.14507, sec. 3); other numbers of
         steps by interpolation of log sigma (appendix). Only for the models they were found for: `NoiseModel.family`.
Flow     flow is the ramp of s from 1 to the model's `ramp_end`, then its shift (Esser et al. 2024, arXiv:2403.03206, eq. 23);
         trailing on a flow model ends the ramp at 1/n.
Ends     "zero" appends sigma = 0, reached by the last call; "sigma_min" ends at the smallest level the network knows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np

from vis_accel.errors import NotApplicableError, UnknownNameError, UsageError
from vis_accel.samplers.noise import SIGMA_CAP, NoiseModel

NAMES: dict[str, str] = {
    "auto": "the solver's choice: flow for flow models; on others logsnr for the dpm family, karras for ipndm and adams, else trailing",
    "leading": "whole times 0, r, 2r, ... with r = T // n, plus the model's steps_offset; vp only",
    "trailing": "times T, T - T/n, ...: starts where the noise is purest, the safe choice for few steps",
    "linspace": "n rounded times from T-1 down to 0; vp only",
    "quadratic": "times growing quadratically up to 0.8 T: dense near the image; vp only",
    "beta": "quantiles of a beta distribution over the times: dense at both ends; vp only",
    "time-power": "equal steps of the square root of the time; vp only",
    "logsnr": "equal steps of log sigma; good on small images; finite start only",
    "exponential": "the same as logsnr, by the name other tools have for it",
    "karras": "equal steps of sigma^(1/7); finite start only",
    "ays": "Align Your Steps: tables for Stable Diffusion 1 and SDXL; refused elsewhere",
    "searched": "what vis-accel schedule found for this very network, this sampler and this number of steps",
    "flow": "equal steps of s, then the model's shift; flow only",
}
_WHOLE_TIMES = ("leading", "trailing", "linspace", "quadratic", "beta")
_BETA = 0.6  # both parameters
_KAPPA = 2
_ALIGNED = {  # family -> the eleven sigmas as published
    "sd": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
}
RHO = 7.0  # Karras et al., appendix D.1: 5 .. 10 look best


def resolve(name: str, noise: NoiseModel) -> str:
    """The schedule that "auto" means for this model; every other name stands for itself."""
    if name != "auto":
        return name
    return {"flow": "flow", "edm": "karras"}.get(noise.kind, "trailing")


def where_finite(name: str, noise: NoiseModel) -> str:
    """A schedule over sigma, where the model's first sigma is a number; elsewhere what "auto" means."""
    return name if noise.starts_finite else resolve("auto", noise)


def create(name: str | Sequence[float], n: int | None, noise: NoiseModel, *, end: str = "zero") -> tuple[float, ...]:
    """The knots of a run of n steps.

    Args:
        name: one of `NAMES`, or the sigmas themselves, falling; a last 0 may be left out (end="zero" appends it).
        n: the number of steps, 1 .. T; None: as many as explicit sigmas give.
        noise: the model the knots are for.
        end: "zero" or "sigma_min".

    Returns:
        n+1 strictly falling floats; the last is 0.0 for end="zero".

    Raises:
        UnknownNameError: a schedule or an end nobody offers.
        UsageError: an n or sigmas this model cannot have.
        NotApplicableError: a schedule that does not fit the model.
    """
    if end not in ("zero", "sigma_min"):
        raise UnknownNameError.of("end of a schedule", str(end), ("zero", "sigma_min"))
    if not isinstance(name, str):
        return _explicit(name, n, noise, end)
    if name not in NAMES:
        raise UnknownNameError.of("schedule", name, NAMES)
    if name == "searched":
        raise NotApplicableError("A searched schedule belongs to one network, and is looked up when a recipe is applied to it.")
    if n is None or isinstance(n, bool) or not 1 <= n <= noise.times:
        raise UsageError(f"The number of steps must be 1 .. {noise.times}, the times this model was trained on; got {n}.")
    name = resolve(name, noise)
    if noise.kind == "flow":
        knots = _flow(name, n, noise)
    elif name == "flow":
        raise _unfit(name, "needs a flow model", noise)
    elif noise.kind == "edm" and (name in _WHOLE_TIMES or name == "time-power"):
        raise _unfit(name, "needs a table of times, and this network knows noise levels only", noise)
    elif name == "ays":
        knots = _aligned(n, noise)
    elif name == "time-power":
        knots = _time_power(n, noise, end)
    elif name in _WHOLE_TIMES:
        return _whole_times(name, n, noise, end)
    else:
        knots = _sigma_space(name, n, noise, end)
    return (*knots, 0.0) if end == "zero" else _down_to_sigma_min(knots, n, noise)


def _unfit(name: str, reason: str, noise: NoiseModel, *, instead: str = "") -> NotApplicableError:
    allowed = {"flow": ("flow", "trailing"), "edm": ("karras", "logsnr")}.get(noise.kind, _WHOLE_TIMES)
    hint = instead or f"schedules of this model: auto, {', '.join(allowed)}, or sigmas"
    return NotApplicableError(f"The schedule {name} {reason}.", hint=hint)


# Whole network times.


def _leading(n: int, total: int, offset: int) -> list[int]:
    ratio = total // n
    offset = min(offset, total - 1 - (n - 1) * ratio)  # n = T leaves no room for an offset
    return [i * ratio + offset for i in reversed(range(n))]


def _trailing(n: int, total: int, offset: int) -> list[int]:
    return [round(total - i * (total / n)) - 1 for i in range(n)]


def _linspace(n: int, total: int, offset: int) -> list[int]:
    return [round((total - 1) * (1 - i / (n - 1))) for i in range(n)] if n > 1 else [total - 1]


def _quadratic(n: int, total: int, offset: int) -> list[int]:
    top, times = 0.8 * total, [-1]
    for i in range(n):
        u = i / (n - 1) if n > 1 else 1.0
        times.append(max(int(top * u * u + 1e-9), times[-1] + 1))  # near 0 the squares are closer than whole times can be
    return times[:0:-1]


def _beta(n: int, total: int, offset: int) -> list[int]:
    return _apart([round(beta_quantile(1 - i / n) * (total - 1)) for i in range(n)], total)


def beta_quantile(u: float) -> float:
    """The u-quantile of Beta(0.6, 0.6), from its integral after x = sin^2(theta), which has no poles."""
    theta, grown = _beta_table()
    return math.sin(float(np.interp(u * grown[-1], grown, theta))) ** 2


@cache
def _beta_table() -> tuple[Any, Any]:
    theta = np.linspace(0, math.pi / 2, 20_001)
    density = (np.sin(theta) * np.cos(theta)) ** (2 * _BETA - 1)
    return theta, np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])


def _apart(times: list[int], total: int) -> list[int]:
    """The nearest strictly falling times in 0 .. total-1, where rounding put two on one place."""
    for i in range(1, len(times)):
        times[i] = min(times[i], times[i - 1] - 1)
    lowest = 0
    for i in reversed(range(len(times))):
        times[i] = max(times[i], lowest)
        lowest = times[i] + 1
    return times


_TIMES: dict[str, Callable[[int, int, int], list[int]]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "quadratic": _quadratic,
    "beta": _beta,
}


def _whole_times(name: str, n: int, noise: NoiseModel, end: str) -> tuple[float, ...]:
    times = _TIMES[name](n, noise.times, noise.steps_offset)
    if end == "zero":
        return (*(noise.sigma_at(t) for t in times), 0.0)
    if times[-1] == 0:  # the last time is the end itself, so one more is needed above it
        if n + 1 > noise.times:
            raise UsageError(f"end='sigma_min' leaves room for {noise.times - 1} steps; got {n}.")
        times = _TIMES[name](n + 1, noise.times, noise.steps_offset)[:-1]
    return tuple(noise.sigma_at(t) for t in (*times, 0))


def _time_power(n: int, noise: NoiseModel, end: str) -> list[float]:
    count = n if end == "zero" else n + 1
    ramp = [i / (count - 1) for i in range(count)] if count > 1 else [0.0]
    return [noise.sigma_at((noise.times - 1) * (1 - u) ** _KAPPA) for u in ramp]


# Sigmas.


def _sigma_space(name: str, n: int, noise: NoiseModel, end: str) -> list[float]:
    if not noise.starts_finite:
        raise _unfit(name, "needs a finite first sigma, and this model starts from pure noise", noise)
    high, low = noise.sigma_max, noise.sigma_min
    count = n if end == "zero" else n + 1
    ramp = [i / (count - 1) for i in range(count)] if count > 1 else [0.0]
    if name in ("logsnr", "exponential"):
        inner = [high * (low / high) ** u for u in ramp]
    else:
        inner = [(high ** (1 / RHO) + u * (low ** (1 / RHO) - high ** (1 / RHO))) ** RHO for u in ramp]
    return [high, *inner[1:-1], low] if count > 1 else [high]  # the ends exactly, so that they meet the network's own times


def _aligned(n: int, noise: NoiseModel) -> list[float]:
    """The knots before the end, from the table of the model's family."""
    fits = noise.family in _ALIGNED and noise.kind == "vp" and noise.prediction == "epsilon"
    if not fits or abs(noise.sigma_max - _ALIGNED[noise.family][0]) > 0.1:
        reason = "is a table for Stable Diffusion 1 and SDXL, found for these networks alone"
        raise _unfit("ays", reason, noise, instead="vis-accel schedule finds knots for any other")
    table = np.log(_ALIGNED[noise.family])
    inner = np.exp(np.interp(np.linspace(0, 1, n + 1), np.linspace(0, 1, len(table)), table))[:-1].tolist()
    return [min(inner[0], noise.sigma_max), *inner[1:]]


def _flow(name: str, n: int, noise: NoiseModel) -> list[float]:
    if name not in ("flow", "trailing"):
        raise _unfit(name, "needs a table of whole times or a finite first sigma, and this is a flow model", noise)
    last = noise.ramp_end if name == "flow" else 1 / n
    ramp = [1 + (last - 1) * i / (n - 1) for i in range(n)] if n > 1 else [1.0]
    return [noise.sigma_at(noise.times * min(noise.shift * s / (1 + (noise.shift - 1) * s), 1.0)) for s in ramp]


def _down_to_sigma_min(knots: Sequence[float], n: int, noise: NoiseModel) -> tuple[float, ...]:
    """Ends sigma-space knots, which do so already, or flow knots at sigma_min."""
    if len(knots) == n + 1:
        return tuple(knots)
    if knots[-1] <= noise.sigma_min:
        raise UsageError(f"This schedule passes sigma_min = {noise.sigma_min:.3g} with {n} steps; use end='zero'.")
    return (*knots, noise.sigma_min)


def _explicit(sigmas: Sequence[float], n: int | None, noise: NoiseModel, end: str) -> tuple[float, ...]:
    knots = tuple(SIGMA_CAP if s == math.inf else float(s) for s in sigmas)
    if end == "zero" and knots and knots[-1] != 0:
        knots = (*knots, 0.0)
    check(knots)
    if knots[0] > noise.sigma_max * (1 + 1e-6):
        raise UsageError(f"The schedule starts at sigma = {knots[0]:.6g}, above the model's largest, {noise.sigma_max:.6g}.")
    if n is not None and n != len(knots) - 1:
        raise UsageError(f"The schedule has {len(knots) - 1} steps of its own; got steps={n}.", hint="leave steps out")
    return knots


def check(knots: Sequence[float]) -> None:
    """Raises UsageError unless there are two knots or more, finite, strictly falling and not below 0."""
    finite = all(math.isfinite(s) and s >= 0 for s in knots)
    if len(knots) < 2 or not finite or any(s <= t for s, t in pairwise(knots)):
        shown = ", ".join(f"{s:.6g}" for s in knots[:8]) + (", ..." if len(knots) > 8 else "")
        raise UsageError(f"Sigmas must be two or more finite numbers, strictly falling, none below 0; got ({shown}).")
