"""RepQ-ViT's scale reparameterization: behind a norm, all channels get the same range, so that one scale serves them as one each would.

Paper    Li et al. 2022, arXiv:2212.08254, sec. 3.2. Each channel behind a norm has a scale s_c and a zero point z_c of its own; with their
         means s~ and z~, r1 = s / s~ and r2 = z - z~ (eq. 9-14 there):
         beta~ = (beta + s r2) / r1,  gamma~ = gamma / r1,  W~ = r1 W,  b~ = b - (s r2) W. One scale s~ and one zero point z~ then round
         every channel as its own would have.
Here     ranges are extremes: s_c = high_c - low_c up to the number of levels, which cancels, and z_c s_c = -low_c. So x / r - t fills
         low~ .. low~ + width~ in every channel, with width~ the mean width and low~ = -width~ times the mean of -low / width.
Exact    in float arithmetic, for any bits: nothing is rounded here; int8 comes after and finds one range that fits all channels.
Left out the paper's log-sqrt(2) quantizer of the softmax: the integer kernels of this package round no softmax, which stays in float.
Cost     a run of `images` images; nothing in a call. Norms as in fold.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.precision.fold import check_float, survey, told

__all__ = ["Repq", "one_range"]

_NARROWEST = 1e-3  # of the mean width: below, a channel is as good as constant, and its factor would only lose digits


@dataclass(frozen=True, kw_only=True)
class Repq(Method):
    """One range for all channels behind a norm.

    Attributes:
        images: of the calibration run.
    """

    name: ClassVar[str] = "repq"
    family: ClassVar[Family] = "precision"
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("scales of norms", "replaces"),)
    prepares: ClassVar[bool] = True

    images: int = option(32, "the number of images of the calibration run", low=1)

    def check_target(self, view: Any) -> None:
        check_float(self, view)

    def apply(self, target: Any, context: Context) -> Handle:
        """Runs the recipe once for the range of every channel; factors and shifts go from the norms into the layers that read them."""
        found = survey(self, context, self.images)
        with Handle.building(target, str(self)) as handle:
            factors = list[Tensor]()
            for place in found.places:
                r, t = one_range(place.low, place.high)
                place.move(handle, r, t)
                factors.append(r)
            handle.reports(lambda: {self.name: told(found, torch.cat(factors))})
        return handle


def one_range(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Factors r and shifts t by which x / r - t fills one range in all channels.

    Args:
        low, high: extremes of each channel, float32 [C].

    Returns:
        r (positive) and t, float32 [C] each. A channel narrower than a thousandth of the mean fills less of the range, from its low end.
    """
    width = high - low
    mean = width.mean().clamp_min(torch.finfo(torch.float32).tiny * 2**20)
    r = (width / mean).clamp_min(_NARROWEST)
    end = -mean * (-low / (r * mean)).clamp(0, 1).mean()  # clamped: a channel far from 0 has a zero point far outside, and would pull
    return r, low / r - end
