"""How far a candidate's images are from the baseline's, made from the same seeds: far more sensitive than any distance between sets.

    PSNR    -10 log10(mean squared error), decibels, per image, at most 100: two images of one seed are often equal bit for bit, and
            one infinite value would make the mean say nothing. How many were equal is stated beside it.
    SSIM    Wang et al. 2004, window 11, sigma 1.5 (torchmetrics), per image
    MAE     mean absolute difference in [0, 1], per image
    LPIPS   Zhang et al. 2018 (torchmetrics, AlexNet), where its weights are already on this machine: nothing is downloaded

All are of the 8-bit images, are averaged over images, and carry a t interval. Images are B x C x H x W, uint8 or float in [0, 1].
Images are not kept; meters of several processes merge by addition.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.features import as_eight_bit
from vis_accel.eval.interval import Interval, RunningMean

__all__ = ["PairedMeter", "PairedScores", "local_lpips", "mean_absolute_difference", "psnr", "ssim"]

PSNR_CAP = 100.0  # decibels; an 8-bit image of 32 x 32 that differs in one value by one has 83
SSIM_WINDOW = 11
Score = Callable[[Tensor, Tensor], Tensor]  # two batches (B x C x H x W, float in [0, 1]) -> one number per image (B)


@dataclass(frozen=True)
class PairedScores:
    """Scores of n pairs. `identical` counts the pairs equal bit for bit; `lpips` is None where its weights are not at hand."""

    psnr: Interval
    ssim: Interval
    mae: Interval
    lpips: Interval | None
    identical: int
    n: int


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio per image (B), decibels, at most 100."""
    error = (a - b).double().square().mean(dim=(1, 2, 3))
    return (-10 * error.log10()).clamp(max=PSNR_CAP)


def mean_absolute_difference(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute difference per image (B)."""
    return (a - b).double().abs().mean(dim=(1, 2, 3))


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity per image (B), 1 for equal images.

    Raises:
        UsageError: images smaller than the window.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    if min(a.shape[-2:]) < SSIM_WINDOW:
        raise UsageError(f"SSIM needs images of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels; got {a.shape[-2]} x {a.shape[-1]}.")
    scores = structural_similarity_index_measure(a, b, data_range=1.0, reduction="none")
    return cast(Tensor, scores).reshape(len(a))  # a tuple only when the full image is asked for


def local_lpips(net: Literal["alex", "vgg", "squeeze"] = "alex", device: str | torch.device = "cpu") -> Score | None:
    """LPIPS per image, or None where the backbone's weights are not in torch's hub folder. Downloads nothing."""
    import torchvision
    from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

    weights = {"alex": "AlexNet_Weights", "vgg": "VGG16_Weights", "squeeze": "SqueezeNet1_1_Weights"}
    url: str = getattr(torchvision.models, weights[net]).DEFAULT.url
    if not (Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]).is_file():
        return None
    network = LearnedPerceptualImagePatchSimilarity(net_type=net).net.to(device).eval()

    def score(a: Tensor, b: Tensor) -> Tensor:
        distances: Tensor = network(a.to(device), b.to(device), normalize=True)
        return distances.reshape(len(a))

    return score


@dataclass
class PairedMeter:
    """Gathers paired scores batch by batch.

        meter = PairedMeter()
        for baseline, candidate in batches:
            meter.update(baseline, candidate)
        meter.result().psnr.value

    Args:
        lpips: a score as `local_lpips` gives it; None leaves it out.
    """

    lpips: Score | None = None
    identical: int = 0
    means: Mapping[str, RunningMean] = field(default_factory=dict)

    @torch.no_grad()
    def update(self, baseline: Tensor, candidate: Tensor) -> None:
        """Takes in one batch of each; image i of both was made from the same seed.

        Raises:
            DataError: batches of different shape, or images out of range.
            UsageError: images smaller than the window of SSIM.
        """
        if baseline.shape != candidate.shape:
            raise DataError(f"Paired images need one shape; got {tuple(baseline.shape)} and {tuple(candidate.shape)}.")
        a, b = as_eight_bit(baseline), as_eight_bit(candidate).to(baseline.device)
        scores = {"psnr": psnr(a, b), "ssim": ssim(a, b), "mae": mean_absolute_difference(a, b)}
        if self.lpips is not None:
            scores["lpips"] = self.lpips(a, b)
        self._merge({name: RunningMean.of(values) for name, values in scores.items()}, int((a == b).flatten(1).all(dim=1).sum()))

    def __iadd__(self, other: PairedMeter) -> PairedMeter:
        self._merge(other.means, other.identical)
        return self

    def _merge(self, means: Mapping[str, RunningMean], identical: int) -> None:
        if self.means and means and self.means.keys() != means.keys():
            raise UsageError("Only meters of the same scores add up: one has LPIPS, the other not.")
        self.means = {name: self.means.get(name, RunningMean()) + means.get(name, RunningMean()) for name in (self.means or means)}
        self.identical += identical

    def result(self) -> PairedScores:
        """The scores so far.

        Raises:
            UsageError: fewer than two pairs.
        """
        found = {name: mean.interval() for name, mean in self.means.items()}
        if not found:
            raise UsageError("Paired scores need at least 2 pairs of images; got none.")
        return PairedScores(found["psnr"], found["ssim"], found["mae"], found.get("lpips"), self.identical, found["psnr"].n)
