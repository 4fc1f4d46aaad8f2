"""What a classifier is given while it is measured: images of a data set, or random numbers where only speed is asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vis_accel.zoo.labelled import Preparation, Prepared

__all__ = ["TIMED_IMAGES", "Inputs"]

TIMED_IMAGES = 16  # a timed call: as many batches as hold that many images, so that easy and hard ones average out
_FED_IMAGES, _FED_BYTES = 256, 2**28  # different images that timed calls go round in, and the memory they may take


@dataclass(frozen=True)
class Inputs:
    """Batches for a network.

    Attributes:
        preparation: from images to inputs.
        like: a parameter of the network: its dtype and device are the inputs'.
        images: None: standard normal inputs, of seed 0, 1, ... by batch.
    """

    preparation: Preparation
    like: Tensor
    images: Prepared | None = None

    @property
    def kind(self) -> str:
        """In a word, for the record."""
        return "images" if self.images is not None else "random normal"

    @property
    def n(self) -> int:
        """Number of images; 0 without."""
        return 0 if self.images is None else len(self.images)

    def batch(self, start: int, end: int) -> Tensor:
        """Inputs start to end, exclusive: B x 3 x H x W."""
        if self.images is not None:
            return self.preparation.normalised(self.images.pixels(start, end), self.like)
        random = torch.Generator().manual_seed(start)
        return torch.randn(end - start, 3, *self.preparation.size, generator=random).to(self.like.device, self.like.dtype)

    def whole(self, start: int, size: int) -> Tensor:
        """A batch of exactly `size` from `start` on; where images end, they are repeated: another shape would cost a compilation."""
        x = self.batch(start, min(start + size, self.n) if self.n else start + size)
        return x.repeat(math.ceil(size / len(x)), 1, 1, 1)[:size]

    def feed(self, size: int) -> list[Tensor]:
        """The batches of `size` that timed calls go round in, ready on the device."""
        one = size * 3 * math.prod(self.preparation.size) * self.like.element_size()
        count = max(1, min(math.ceil(_FED_IMAGES / size), _FED_BYTES // one))
        there = max(1, self.n // size) if self.n else together(size)
        return [self.whole(index * size, size) for index in range(min(count, there))]


def together(size: int) -> int:
    """Batches of `size` in one timed call."""
    return math.ceil(TIMED_IMAGES / size)
