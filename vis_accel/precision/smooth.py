"""SmoothQuant: large channels of activations become smaller, the weights that read them larger, by the same factor.

Paper    Xiao et al. 2022, arXiv:2211.10438, eq. 3-4: Y = (X diag(s)^-1) (diag(s) W), s_j = max|X_j|^alpha / max|W_j|^(1 - alpha).
         diag(s)^-1 goes into the norm before (sec. 4): of attention's projections, of the MLP's first layer. The layers after attention and
         after the activation have no norm before them and stay.
Exact    in float arithmetic: nothing is rounded here. What rounds (int8) comes after, and has less to lose: one scale for a whole
         activation is set by its largest channel.
Alpha    0: all of the difficulty is left in the weights of a channel, 1: all of the activations' goes into them; 0.5 halves it.
Cost     a run of `images` images; nothing in a call.
Norms    LayerNorms read by Linears alone, and the adaptive norms of DiT blocks: see fold.py, which also says which are left and why.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.precision.fold import check_float, survey, told

__all__ = ["Smooth", "smoothing"]


@dataclass(frozen=True, kw_only=True)
class Smooth(Method):
    """Ranges of channels evened out between activations and weights.

    Attributes:
        alpha: how much of the activations' range goes into the weights.
        images: of the calibration run.
    """

    name: ClassVar[str] = "smooth"
    family: ClassVar[Family] = "precision"
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("scales of norms", "replaces"),)
    prepares: ClassVar[bool] = True

    alpha: float = option(0.5, "how much of the activations' range goes into the weights", low=0.0, high=1.0)
    images: int = option(32, "the number of images of the calibration run", low=1)

    def check_target(self, view: Any) -> None:
        check_float(self, view)

    def apply(self, target: Any, context: Context) -> Handle:
        """Runs the recipe once for the largest value of every channel, and moves factors from the norms into the layers that read them."""
        found = survey(self, context, self.images)
        with Handle.building(target, str(self)) as handle:
            largest = list[Tensor]()
            for place in found.places:
                peaks = torch.maximum(place.low.abs(), place.high.abs())
                largest.append(smoothing(peaks, [reader.weight for reader in place.readers], self.alpha))
                place.move(handle, largest[-1])
            handle.reports(lambda: {self.name: told(found, torch.cat(largest))})
        return handle


def smoothing(peaks: Tensor, weights: Sequence[Tensor], alpha: float) -> Tensor:
    """Factors s: channels that are never anything but 0, and channels nobody reads, keep 1.

    Args:
        peaks: max|X_j|, float32 [C].
        weights: of all layers that read X, each [O, C].
        alpha: 0 .. 1.

    Returns:
        float32 [C], positive.
    """
    read = torch.stack([weight.detach().float().abs().amax(0) for weight in weights]).amax(0)
    factors = peaks.pow(alpha) / read.pow(1 - alpha)
    usable = (peaks > 0) & (read > 0) & factors.isfinite() & (factors > 0)
    return torch.where(usable, factors, torch.ones_like(factors))
