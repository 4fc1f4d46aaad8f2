"""Caches that know before a call whether it reuses: every so many calls are computed in full, or those that are named."""

from __future__ import annotations

from dataclasses import dataclass

from vis_accel.caching.calls import Cache, Past
from vis_accel.caching.schedule import LAST
from vis_accel.clock import Moment
from vis_accel.method import option

__all__ = ["Planned"]


@dataclass(frozen=True, kw_only=True)
class Planned(Cache):
    """Base of the caches with a plan.

    Attributes:
        interval: every so many calls one is computed in full; 1 reuses nothing.
        full: instead, which calls are, 0-based. The first call and the last two are in any case.
    """

    interval: int = option(3, "every how many calls one is computed in full", low=1)
    full: tuple[int, ...] | None = option(None, "which calls are computed in full, instead of every so many", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.full is not None:
            if list(self.full) != sorted(set(self.full)):
                raise self.refused("full", "must rise from call to call")
            if self.interval != 3:
                raise self.refused("interval", "must be left out where the full calls are named")

    def due(self, moment: Moment, past: Past) -> bool:
        """Whether this call must be computed in full."""
        if moment.index >= moment.calls - LAST:
            return True
        chosen = self.chosen(moment)
        if chosen is not None:
            return moment.index in chosen
        return moment.index - past.nodes[-1].index >= self.interval

    def chosen(self, moment: Moment) -> tuple[int, ...] | None:
        """The calls that are full beside the first and the last ones; None: every so many."""
        return self.full
