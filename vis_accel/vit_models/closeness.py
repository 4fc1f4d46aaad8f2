"""Whether two forms of one classifier, folded, exported or not, compute the same logits up to rounding."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from vis_accel.errors import NotApplicableError

__all__ = ["Closeness", "close", "closeness", "logits"]

_CLOSE = 1e-3  # how far another form may move a logit, relative to how far logits lie apart between images, and ...
_NOISE = 1e-5  # ... beyond that, relative to the image's largest logit: what rounding in float32 stays below


class Closeness(NamedTuple):
    """How near two sets of logits are.

    Attributes:
        difference, typical: of a logit, relative to the largest logit of its image; worst and median image.
        spread: what they are to be compared with: the same, between an image and the mean of all.
        agreement: share of images with the same class.
    """

    difference: float
    typical: float
    spread: float
    agreement: float


def logits(network: nn.Module, x: Tensor) -> Tensor:
    """What a classifier says of images (B x classes).

    Raises:
        NotApplicableError: it says something else.
    """
    out = network(x)
    if not isinstance(out, Tensor) or out.ndim != 2:
        raise NotApplicableError(f"{type(network).__name__} gives no logits: it is no classifier.")
    return out


def close(got: Tensor, want: Tensor) -> Tensor:
    """Per image, whether the logits are the same up to rounding. What counts is how far logits of different images lie apart: in networks
    that were not trained that can be a thousandth of the logits, and a file that ignored the image would be near them."""
    between = (want - want.mean(0)).abs().amax() if len(want) > 1 else want.abs().amax()
    return (got - want).abs().amax(1) <= _CLOSE * between + _NOISE * want.abs().amax(1)


def closeness(got: Tensor, want: Tensor) -> Closeness:
    apart, between = _apart(got, want), _apart(want.mean(0, keepdim=True), want)
    agreement = float((got.argmax(1) == want.argmax(1)).float().mean())
    return Closeness(float(apart.max()), float(apart.median()), float(between.max()), agreement)


def _apart(got: Tensor, want: Tensor) -> Tensor:
    """Per image, the largest difference of a logit, relative to the largest logit."""
    return (got - want).abs().amax(dim=1) / want.abs().amax(dim=1).clamp_min(1e-30)
