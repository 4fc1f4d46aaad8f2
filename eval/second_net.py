"""A second feature network, trained differently, to ask whether the first one's ranking of samplers is its own taste.

    python eval/second_net.py --data DIR      trains it, in about 45 minutes on one core, and writes eval/second-net.safetensors

It differs from the bundled cifar10-features in architecture (residual, after "How to train your ResNet", Page 2018; ReLU; no whitening),
optimiser (SGD, one cycle, then a warm restart without cutout and label smoothing), seed of the second stage and length. It does not ship.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel.eval.features import FeatureNet
from vis_accel.training import TrainingConfig, train
from vis_accel.zoo.cifar10 import Images, load_split
from vis_accel.zoo.train_features import FeaturesTask, augment

WEIGHTS = Path(__file__).parent / "second-net.safetensors"


class SecondNet(nn.Module):
    """Residual classifier, 1.0 M parameters; images B x 3 x 32 x 32 in [0, 1], features B x 64, logits B x 10."""

    mean: Tensor
    std: Tensor

    def __init__(self, widths: tuple[int, int, int, int] = (32, 64, 128, 144), num_features: int = 64) -> None:
        super().__init__()
        self.num_features = num_features
        self.register_buffer("mean", torch.tensor((0.4914, 0.4822, 0.4465)).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor((0.247, 0.2435, 0.2616)).view(1, 3, 1, 1))
        stem, *stages = widths
        self.stem = _convolution(3, stem)
        self.stages = nn.Sequential(*(_stage(a, b) for a, b in zip(widths, stages, strict=False)))
        self.project = nn.Linear(stages[-1], num_features, bias=False)
        self.standardise = nn.BatchNorm1d(num_features, affine=False)
        self.head = nn.Linear(num_features, 10)

    def forward_features(self, images: Tensor) -> Tensor:
        """Features, of unit variance on the training images."""
        x = self.stages(self.stem((images - self.mean) / self.std))
        features: Tensor = self.standardise(self.project(x.mean(dim=(2, 3))))
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits


def second_net() -> FeatureNet:
    """The trained network, as `eval` wants it."""
    from safetensors.torch import load_file

    net = SecondNet()
    net.load_state_dict(load_file(WEIGHTS))
    return FeatureNet(net, name="second-net", num_features=net.num_features, entry="forward_features", size=(32, 32))


class SecondTask(FeaturesTask):
    """Cross entropy; in the second stage, from `start`, without cutout and label smoothing."""

    name = "second-net"

    def __init__(self, train: Images, test: Images, start: Path | None = None) -> None:
        from safetensors.torch import load_file

        torch.manual_seed(0)
        self.model: Any = SecondNet()
        self.first = start is None
        if start is not None:
            self.model.load_state_dict(load_file(start))
        self.train, self.test, self.examples = train, test, len(train)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = augment(self.train.pixels[indices].float() / 255, generator, cutout=8 if self.first else 0)
        return images.contiguous(memory_format=torch.channels_last), self.train.labels[indices]

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, labels = batch
        return functional.cross_entropy(model(images).float(), labels, label_smoothing=0.1 if self.first else 0.0)


def main(data: Path, output: Path) -> None:
    """Both stages; the second one's average is what is kept."""
    images, test = load_split(data, "train"), load_split(data, "test")
    epoch = len(images) // 256
    first = TrainingConfig(
        steps=15 * epoch, batch_size=256, learning_rate=0.2, optimizer="sgd", weight_decay=5e-4, warmup=0.2, decay=0.8,
        ema_decay=0.998, clip=None, channels_last=True, compile=False, evaluate_every=3 * epoch,
    )  # fmt: skip
    second = replace(first, steps=5 * epoch, learning_rate=0.1, warmup=0.05, decay=0.95, seed=1)
    train(SecondTask(images, test), first, output=output, resume=True, report=print)
    train(SecondTask(images, test, output / "model.safetensors"), second, output=output / "refine", resume=True, report=print)
    WEIGHTS.write_bytes((output / "refine" / "model.safetensors").read_bytes())


def _convolution(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU(inplace=True))


class _Residual(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


def _stage(inside: int, outside: int) -> nn.Sequential:
    residual = _Residual(nn.Sequential(_convolution(outside, outside), _convolution(outside, outside)))
    return nn.Sequential(_convolution(inside, outside), nn.MaxPool2d(2), residual)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path("runs/second-net"))
    given = parser.parse_args()
    main(given.data, given.output)
