"""A small fixed feature network and images of ten synthetic modes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from vis_accel.eval.features import FeatureNet

FEATURES = 16


def build_net(seed: int = 0) -> FeatureNet:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Sequential(nn.Conv2d(3, 12, 3, stride=2), nn.ReLU(), nn.Conv2d(12, FEATURES, 3), nn.ReLU())
        net = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return FeatureNet(net, name="tiny", num_features=FEATURES, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def build_images(n: int, seed: int, modes: int = 10) -> Tensor:
    """n x 3 x 16 x 16 in [0, 1]: gratings, their colour, direction and frequency by mode, and noise; image i is of mode i % modes."""
    generator = torch.Generator().manual_seed(seed)
    mode = torch.arange(n) % modes
    angle = mode * torch.pi / 10 + 0.1 * torch.randn(n, generator=generator)
    frequency = 0.5 + 0.15 * mode
    phase = 6.28 * torch.rand(n, generator=generator)
    line = torch.arange(16.0)
    across = angle.cos()[:, None, None] * line[:, None] + angle.sin()[:, None, None] * line
    wave = 0.5 + 0.3 * torch.sin(frequency[:, None, None] * across + phase[:, None, None])
    colour = torch.stack([0.4 + 0.06 * mode, 1 - 0.05 * mode, 0.7 + 0.03 * mode], dim=1)
    return (wave[:, None] * colour[:, :, None, None] + 0.03 * torch.randn(n, 3, 16, 16, generator=generator)).clamp(0, 1)


@pytest.fixture(scope="session")
def net() -> FeatureNet:
    return build_net()


@pytest.fixture(scope="session")
def other_net() -> FeatureNet:
    return build_net(seed=1)


@pytest.fixture(scope="session")
def make_images() -> Callable[..., Tensor]:
    return build_images
