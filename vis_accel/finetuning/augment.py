"""Random changes of training images, drawn from one generator, a batch at a time.

none    scaled to size.
light   a crop after padding by an eighth on every side (by reflection), and a flip.
full    a crop of random area (from 0.35) and aspect (from 3/4 to 4/3), enlarged, and a flip, as GoogLeNet was trained (Szegedy et al. 2015,
        arXiv:1409.4842, section 6); brightness, contrast and saturation by up to 40%; a grey rectangle with probability 1/4 (Zhong et al.
        2020, arXiv:1708.04896).
mixup   lambda x + (1 - lambda) x', and labels the same way; lambda ~ Beta(a, a), one a batch (Zhang et al. 2018, arXiv:1710.09412,
        section 2).

Shapes   images B x 3 x H x W, uint8 going in, float in [0, 1] coming out; targets B x classes.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["augmented", "mixed", "scaled"]

_AREA, _ASPECT = 0.35, 4 / 3
_COLOUR, _ERASED, _GREY = 0.4, 0.25, 0.5


def scaled(images: Tensor, size: int) -> Tensor:
    """Float images in [0, 1], of `size` x `size`."""
    images = images.float() / 255
    if images.shape[-1] == size:
        return images
    return functional.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def augmented(images: Tensor, size: int, strength: str, generator: torch.Generator) -> Tensor:
    """Images changed at random.

    Args:
        images: uint8.
        size: side of the result.
        strength: "none", "light" or "full".
        generator: of the random numbers.
    """
    if strength == "none":
        return scaled(images, size)
    if strength == "light":
        return _shifted(scaled(images, size), generator)
    return _erased(_recoloured(_cropped(images.float() / 255, size, generator), generator), generator)


def mixed(images: Tensor, targets: Tensor, alpha: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Each image and its target (probabilities, B x classes) mixed with those of another of the batch."""
    seed = int(torch.randint(2**31, (), generator=generator))
    share = random.Random(seed).betavariate(alpha, alpha)  # PyTorch draws no Beta from a generator
    other = torch.randperm(len(images), generator=generator)
    return share * images + (1 - share) * images[other], share * targets + (1 - share) * targets[other]


def _shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = functional.pad(images, (pad,) * 4, mode="reflect")
    top, left = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    flip = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(flip, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _cropped(images: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """A rectangle of each image, inside of it, enlarged to `size`: an affine map from the result's coordinates, [-1, 1], to the image's."""
    count = len(images)
    area, shape, x, y, flip = torch.rand(5, count, generator=generator)
    area = _AREA + (1 - _AREA) * area
    aspect = _ASPECT ** (2 * shape - 1)
    width, height = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)  # as shares of the image
    maps = torch.zeros(count, 2, 3)
    maps[:, 0, 0] = width * torch.where(flip < 0.5, -1.0, 1.0)
    maps[:, 1, 1] = height
    maps[:, 0, 2], maps[:, 1, 2] = (2 * x - 1) * (1 - width), (2 * y - 1) * (1 - height)
    grid = functional.affine_grid(maps, [count, 3, size, size], align_corners=False)
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _recoloured(images: Tensor, generator: torch.Generator) -> Tensor:
    factors = 1 + _COLOUR * (2 * torch.rand(3, len(images), 1, 1, 1, generator=generator) - 1)
    images = images * factors[0]
    middle = images.mean(dim=(1, 2, 3), keepdim=True)
    images = middle + factors[1] * (images - middle)
    grey = images.mean(dim=1, keepdim=True)
    return (grey + factors[2] * (images - grey)).clamp(0, 1)


def _erased(images: Tensor, generator: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    chance, area, shape, x, y = torch.rand(5, count, 1, 1, generator=generator)
    area, aspect = 0.02 + 0.31 * area, _ASPECT ** (2 * shape - 1)
    half_rows, half_columns = (area / aspect).sqrt() * height / 2, (area * aspect).sqrt() * width / 2
    inside_rows = (torch.arange(height)[None, :, None] - y * height).abs() < half_rows
    inside_columns = (torch.arange(width)[None, None, :] - x * width).abs() < half_columns
    return torch.where((inside_rows & inside_columns & (chance < _ERASED))[:, None], _GREY, images)
