"""The yardstick of one benchmark: a feature network, the real images it is held against, and what a set of features scores on them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vis_accel.eval.accuracy import agreement
from vis_accel.eval.coverage import precision_recall
from vis_accel.eval.features import FeatureNet
from vis_accel.eval.fid import fid_with_interval, paired_difference, real_floor
from vis_accel.eval.interval import Interval
from vis_accel.eval.kid import kid
from vis_accel.eval.noninferiority import LEAST_IMAGES, same_quality
from vis_accel.eval.paired import PairedMeter
from vis_accel.eval.reference import Reference
from vis_accel.record import Quantity

__all__ = ["PER_FEATURE", "Yardstick", "paired_quality", "quantity"]

FEWEST = 100  # images for any score of a whole set
PER_FEATURE = 20  # images per feature dimension below which no FID is printed: its bias would be larger than what it shows


@dataclass(frozen=True, eq=False)
class Yardstick:
    """What images are measured with.

    Attributes:
        net: the feature network.
        reference: statistics of real images.
        held_out: features (m x d) of real images that are not in the reference: their own FID is the floor; None: no floor, no verdict.
        classify: features -> logits, for the agreement with the class asked for; None: not scored.
    """

    net: FeatureNet
    reference: Reference
    held_out: Tensor | None = None
    classify: Callable[[Tensor], Tensor] | None = None

    @property
    def fid(self) -> str:
        """What the score is called: never plain FID, for the network is not the usual one."""
        return f"FID[{self.net.name}]"

    @property
    def sha256(self) -> str:
        """Hash of the network and of every number images are held against."""
        state = hashlib.sha256(self.reference.net_sha256.encode())
        real = self.reference.statistics
        for part in (real.sum, real.outer, self.reference.subset, self.held_out):
            state.update(b"none" if part is None else part.double().cpu().contiguous().numpy().tobytes())
        return state.hexdigest()

    @property
    def smallest(self) -> int:
        """The fewest images an FID is printed for."""
        return PER_FEATURE * self.net.num_features

    def floor(self, n: int) -> float | None:
        """The FID of n held-out real images: what a perfect generator would get."""
        if self.held_out is None or n < self.smallest or n > len(self.held_out):
            return None
        return real_floor(self.held_out, self.reference.statistics, n)

    def quality(self, features: Tensor, labels: Tensor | None) -> dict[str, Quantity]:
        """Scores of a set of features (n x d): FID where n allows it, KID, precision, recall, agreement with the class asked for."""
        found: dict[str, Quantity] = {}
        n = len(features)
        if n >= self.smallest:
            found[self.fid] = quantity(fid_with_interval(features, self.reference.statistics), higher_is_better=False)
        if n >= FEWEST:
            found["KID"] = quantity(kid(features, self.reference.subset), higher_is_better=False)
        if FEWEST <= n <= len(self.reference.subset):
            coverage = precision_recall(features, self.reference.subset[:n])
            found["precision"] = Quantity(value=coverage.precision, higher_is_better=True)
            found["recall"] = Quantity(value=coverage.recall, higher_is_better=True)
        if self.classify is not None and labels is not None:
            found["class agreement"] = quantity(agreement(self.classify(features).argmax(1), labels), higher_is_better=True)
        return found

    def compare(self, features: Tensor, baseline: Tensor) -> tuple[dict[str, Quantity], str]:
        """The paired difference of FID to the baseline on equal seeds, and in words whether it may be called the same quality."""
        n = len(features)
        if n < self.smallest:
            return {}, f"not judged: no FID below {self.smallest} images and no claim below {LEAST_IMAGES}; there are {n}"
        difference = paired_difference(features, baseline, self.reference.statistics)
        found, floor = {f"{self.fid} difference": quantity(difference)}, self.floor(n)
        if floor is None:
            return found, f"not judged: there are no {n} held-out real images, whose FID would be the floor"
        verdict = same_quality(difference, fid_with_interval(baseline, self.reference.statistics).value, floor)
        return found, f"{verdict.outcome}: {verdict.reason}"


def paired_quality(baseline: Tensor, candidate: Tensor) -> dict[str, Quantity]:
    """PSNR and SSIM of images (n x 3 x H x W, uint8) to the baseline's of the same seeds; the names carry n."""
    meter = PairedMeter()
    for a, b in zip(baseline.split(64), candidate.split(64), strict=True):
        meter.update(a, b)
    result: Any = meter.result()
    n = len(baseline)
    return {
        f"PSNR[n={n}]": quantity(result.psnr, higher_is_better=True),
        f"SSIM[n={n}]": quantity(result.ssim, higher_is_better=True),
    }


def quantity(interval: Interval, *, higher_is_better: bool | None = None) -> Quantity:
    """The form of an interval in a record."""
    low, high = interval.low, interval.high
    finite = all(abs(end) < float("inf") for end in (low, high)) and interval.n > 1
    ends = (low, high) if finite else (None, None)
    return Quantity(value=interval.value, low=ends[0], high=ends[1], level=interval.level, higher_is_better=higher_is_better)
