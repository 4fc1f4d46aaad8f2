"""Restart: once near the image, back up by one large addition of noise and down again, several times.

Paper    Xu et al. 2023, arXiv:2306.14878, Algorithm 1, with one interval.
Space    data scale 1. At the first knot t <= `low`: x <- x + sqrt(high^2 - t^2) z, then down from `high` to t by Heun over `inner` steps of
         the rho = 7 grid, `times` times over; before and after it Heun over the run's own knots.
Why      the large noise forgets the errors made so far, and the deterministic way down makes few new ones: better than small doses of noise
         in every step, from about 40 calls. Below 20 calls the calls are better spent on the way down.
Where    at the first knot that is not above `low`; if there is none, at the last one above 0. A run that begins at or below `low` never
         restarts (it is the tail of one that did), and none goes back above the noise it began with. Knots so coarse that the last of them
         above 0 is not below `high` leave nothing to go back from: refused.
Cost     2 n - 1 calls as for Heun, and 2 `inner` `times` more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.method import option
from vis_accel.samplers import schedules
from vis_accel.samplers.heun import heun_step
from vis_accel.samplers.noise import NoiseModel
from vis_accel.samplers.schedules import RHO
from vis_accel.samplers.solver import Noise, Past, Solve, Solver, draw

ENOUGH = 50  # steps, for a look at whether the model's noise can be gone through again at all


@dataclass(frozen=True, kw_only=True)
class Restart(Solver):
    """Heun with restarts.

    Attributes:
        low, high: the interval of noise that is gone through again; the paper's best are 0.05 .. 0.3 and 0.3 .. 10, by the model.
        inner: steps of one way down.
        times: how often.
    """

    name: ClassVar[str] = "restart"

    low: float = option(0.1, "where it turns back", above=0)
    high: float = option(1.0, "how far back it goes", above=0)
    inner: int = option(3, "steps of one way down", low=1)
    times: int = option(2, "how often it goes back", low=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.high <= self.low:
            raise self.refused("high", f"must be above low, {self.low}")

    @property
    def convergence_order(self) -> int:
        return 2

    def auto_schedule(self, noise: NoiseModel) -> str:
        """Karras's, dense where the restarts are, wherever the first sigma is finite."""
        return schedules.where_finite("karras", noise)

    def check_target(self, view: Any) -> None:
        """As every solver's; where the call will say how many steps, enough of them are assumed."""
        if self.steps is None and isinstance(self.schedule, str):
            return replace(self, steps=ENOUGH).check_target(view)
        super().check_target(view)

    def knots(self, steps: int | None, noise: NoiseModel) -> tuple[float, ...]:
        """The knots of a run.

        Raises:
            UsageError: knots from which it would never go back.
        """
        found = super().knots(steps, noise)
        turn = self.turn(found)
        if found[0] > self.low and (turn is None or turn >= self.high):
            least = "there is none" if turn is None else f"the last above 0 is {turn:.3g}"
            raise UsageError(
                f"{self.name} goes back to high={self.high:g} from a knot below that, and of these {len(found) - 1} steps {least}.",
                hint="more steps, a higher high=, or another sampler",
            )
        return found

    def resumed(self) -> Solver:
        message = f"A run of {self.name} cannot go on at a later knot: how far it goes back depends on where it began."
        raise NotApplicableError(message, hint="one run from beginning to end")

    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        turn, high = self.turn(sigmas), min(self.high, sigmas[0])
        for s, t in pairwise(sigmas):
            x = yield from heun_step(x, s, t)
            if t == turn and t < high:
                for _ in range(self.times):
                    x = x + math.sqrt(high**2 - t**2) * draw(noise, x)
                    for a, b in pairwise(self.way_down(high, t)):
                        x = yield from heun_step(x, a, b)
        return x

    def turn(self, sigmas: Sequence[float]) -> float | None:
        """The knot at which a run over `sigmas` goes back; None: it does not."""
        if sigmas[0] <= self.low:
            return None
        inner = [t for t in sigmas[1:] if t > 0]
        return next((t for t in inner if t <= self.low), inner[-1] if inner else None)

    def way_down(self, high: float, end: float) -> tuple[float, ...]:
        """The knots from `high` to `end`, linear in sigma^(1 / rho)."""
        first, last = high ** (1 / RHO), end ** (1 / RHO)
        between = ((first + i / self.inner * (last - first)) ** RHO for i in range(1, self.inner))
        return (high, *between, end)
