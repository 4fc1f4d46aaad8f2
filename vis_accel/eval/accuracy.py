"""How often a classifier is right, or two of them say the same: shares with Wilson's interval.

    centre = (p + z^2 / 2n) / (1 + z^2 / n),  half width = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n)      Wilson 1927

It stays within [0, 1] and has a width at p = 0 and p = 1, where the textbook interval has none.
Shapes   n images, c classes; logits n x c; predictions and labels n (whole numbers).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import NormalDist

import torch
from torch import Tensor, nn

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.features import as_eight_bit
from vis_accel.eval.interval import Interval

__all__ = ["agreement", "class_agreement", "predict", "top1", "wilson"]


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """The share `successes` / n with its interval.

    Raises:
        UsageError: n below 1, or successes outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UsageError(f"A share needs n >= 1 and 0 <= successes <= n; got {successes} of {n}.")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # Rounding alone would leave 1e-17 where the formula gives exactly 0 or 1.
    low, high = (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)
    return Interval(share, low, high, n, level)


def top1(predictions: Tensor, labels: Tensor) -> Interval:
    """Share of right predictions (n whole numbers, or n x c logits).

    Raises:
        DataError: different lengths, no images, or logits that are not finite.
    """
    return agreement(predictions, labels)


def agreement(a: Tensor, b: Tensor) -> Interval:
    """Share of images on which two classifiers agree; each n whole numbers, or n x c logits.

    Raises:
        DataError: different lengths, no images, or logits that are not finite.
    """
    left, right = _classes(a), _classes(b)
    if len(left) != len(right) or not len(left):
        raise DataError(f"Both sides need a prediction for the same images; got {len(left)} and {len(right)}.")
    return wilson(int((left == right).sum()), len(left))


@torch.no_grad()
def predict(classifier: nn.Module, image_batches: Iterable[Tensor]) -> Tensor:
    """Class (n, int64, on the CPU) `classifier` gives each image (B x C x H x W, uint8 or float in [0, 1]).

    The classifier takes images in [0, 1] and does its own normalisation. It runs in evaluation mode; each module's mode is put back.

    Raises:
        DataError: no images, or logits that are not finite.
    """
    device = next((t.device for t in [*classifier.parameters(), *classifier.buffers()]), torch.device("cpu"))
    modes = [(module, module.training) for module in classifier.modules()]
    try:
        classifier.eval()
        found = [_classes(classifier(as_eight_bit(batch.to(device)))) for batch in image_batches]
    finally:
        for module, mode in modes:
            module.training = mode
    if not found:
        raise DataError("There are no images to classify.")
    return torch.cat(found)


def class_agreement(classifier: nn.Module, image_batches: Iterable[Tensor], labels: Tensor) -> Interval:
    """Share of generated images the classifier puts into the class they were asked for (labels: n, in the order of the images).

    Raises:
        DataError: another number of labels than images, no images, logits that are not finite.
    """
    return agreement(predict(classifier, image_batches), labels)


def _classes(given: Tensor) -> Tensor:
    if given.ndim == 2:
        if not given.isfinite().all():
            raise DataError(f"{int((~given.isfinite()).any(dim=1).sum())} of {len(given)} rows of logits are not finite (NaN or infinite).")
        given = given.argmax(dim=1)
    if given.ndim != 1 or given.is_floating_point():
        raise DataError(f"Predictions are n whole numbers or n x c logits; got {given.dtype} {tuple(given.shape)}.")
    return given.detach().cpu().long()
