"""Every score sees what it must see: real against real is small; blur, noise and a dropped mode are worse, and more of them worse still."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from vis_accel.eval.coverage import precision_recall
from vis_accel.eval.features import FeatureNet, extract
from vis_accel.eval.fid import Statistics, frechet_distance
from vis_accel.eval.kid import kid

N = 1000


def blur(images: Tensor, level: int) -> Tensor:
    for _ in range(level):
        images = functional.avg_pool2d(functional.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    return images


def noise(images: Tensor, level: int) -> Tensor:
    return (images + 0.03 * level * torch.randn(images.shape, generator=torch.Generator().manual_seed(3))).clamp(0, 1)


def drop(images: Tensor, level: int) -> Tensor:
    """Without the last 2 * level of ten modes; as many images as before."""
    kept = images[torch.arange(len(images)) % 10 < 10 - 2 * level]
    return kept.repeat(10, 1, 1, 1)[: len(images)]


@pytest.fixture(scope="module")
def real(net: FeatureNet, make_images: Callable[..., Tensor]) -> Tensor:
    return extract(net, make_images(N, 0).split(250))


def fid(net: FeatureNet, images: Tensor, real: Tensor) -> float:
    return frechet_distance(Statistics.of(extract(net, images.split(250))), Statistics.of(real))


def test_real_against_real_is_small_and_not_0(net: FeatureNet, make_images: Callable[..., Tensor], real: Tensor) -> None:
    held_out = fid(net, make_images(N, 1), real)
    assert fid(net, make_images(N, 0), real) < 1e-9
    assert 0 < held_out < 0.05 * fid(net, blur(make_images(N, 1), 1), real)


@pytest.mark.parametrize("harm", [blur, noise, drop])
def test_more_harm_is_a_greater_distance(
    net: FeatureNet, make_images: Callable[..., Tensor], real: Tensor, harm: Callable[[Tensor, int], Tensor]
) -> None:
    images = make_images(N, 1)
    distances = [fid(net, harm(images, level), real) for level in range(5)]
    assert distances == sorted(distances)
    assert distances[1] > 2 * distances[0]
    kernel = [kid(extract(net, harm(images, level).split(250)), real).value for level in range(5)]
    assert kernel == sorted(kernel)


def test_a_dropped_mode_costs_recall_and_noise_costs_precision(net: FeatureNet, make_images: Callable[..., Tensor], real: Tensor) -> None:
    images = make_images(N, 1)
    plain, dropped, noisy = (precision_recall(extract(net, x.split(250)), real) for x in (images, drop(images, 3), noise(images, 4)))
    assert min(plain.precision, plain.recall, plain.coverage) > 0.8
    assert dropped.recall < 0.6
    assert dropped.coverage < 0.6
    assert dropped.precision > 0.8
    assert noisy.precision < 0.5
    assert noisy.density < 0.5
