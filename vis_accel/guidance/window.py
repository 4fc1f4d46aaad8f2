"""Guidance window: guidance at middle noise levels only; at all others the conditional half alone is evaluated.

Paper    Kynkäänniemi et al. 2024, arXiv:2404.07724: guidance harms at high noise (images of one class grow alike), does nothing at low
         noise, and helps between.
Rule     e = e_u + w (e_c - e_u) where lo < sigma <= hi, else e = e_c.
Space    sigma = noise / signal for data of standard deviation 1, as everywhere here; the paper's ImageNet networks are for data of 0.5,
         so their sigmas are twice as large here.
Cost     1 + (share of the calls in the window) rows an image and call, instead of 2.
Jumps    e is not continuous in sigma at the edges, and a multistep solver extrapolates across them. With restart=True the samplers of this
         package forget their history there, and start again at first order; a stock scheduler offers no way to. It is not the default:
         on the bundled DiT, at 8 to 20 calls, the step of first order mostly cost more than the extrapolation. Right at an edge neither
         is accurate: the knots of a run do not lie on it.
Neutral  guidance-window(lo=0, hi=None).    Not: a window over shares of the steps, which moves when the schedule or their number changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vis_accel.clock import Moment
from vis_accel.guidance.base import Guidance, Remembered
from vis_accel.method import option

__all__ = ["GuidanceWindow"]


@dataclass(frozen=True, kw_only=True)
class GuidanceWindow(Guidance):
    """Guidance where lo < sigma <= hi.

    Attributes:
        lo, hi: the window, sigma = noise / signal; which is best depends on the model (samplers/guidance_window.py finds it).
        restart: whether the samplers of this package forget their history at the edges.
    """

    name: ClassVar[str] = "guidance-window"

    lo: float = option(0.3, "the noise level above which there is guidance", low=0)
    hi: float | None = option(5.0, "the highest noise level with guidance, None for any", above=0)
    restart: bool = option(False, "whether samplers forget their history at the edges")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hi is not None and self.hi <= self.lo:
            raise self.refused("hi", f"must be above lo, {self.lo}")

    def both(self, moment: Moment, run: Remembered) -> bool:
        return self.lo < moment.sigma and (self.hi is None or moment.sigma <= self.hi)

    def clears(self) -> bool:
        return self.restart

    def idle(self, levels: tuple[float, float]) -> str:
        return f"every call lay in the window of {self}: their sigmas went from {levels[1]:.4g} to {levels[0]:.4g}"
