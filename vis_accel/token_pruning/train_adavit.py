"""Trains AdaViT's decision heads for cifar10-vit, and the network along with them.

Paper    Meng et al. 2022, arXiv:2111.15668: loss of the classes, plus twice the sum over sub-layers, heads and patches of
         (share used - target)^2.
Departs  without the authors' regularisers of diversity and entropy; a few epochs instead of 150.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel import addons
from vis_accel.token_pruning.adavit import Adavit
from vis_accel.token_pruning.deciding import DecidingModel, DecidingOutcome
from vis_accel.token_pruning.losses import usage_loss
from vis_accel.token_pruning.method_task import MethodTask, config
from vis_accel.training import TrainingConfig
from vis_accel.zoo import load
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.feature_net import ConvClassifier

__all__ = ["DecidingTask", "default_config"]

_USAGE = 2.0  # weight of the loss
_NETWORK = 1 / 6  # learning rate of the network, of the heads'


def default_config(epochs: int = 2) -> TrainingConfig:
    """About 20 minutes on one core."""
    return config(epochs, 3e-3)


class DecidingTask(MethodTask):
    """Trains decision heads.

    Args:
        train, calibration, test: the images.
        teacher: the bundled feature network.
        layers, heads, patches: shares that shall be used.
    """

    def __init__(
        self, train: Images, calibration: Images, test: Images, teacher: ConvClassifier, *,
        layers: float = 0.7, heads: float = 0.8, patches: float = 0.7,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        model = DecidingModel(load("cifar10-vit"))
        super().__init__(Adavit(), model, train, calibration, test, teacher)
        self.targets = (layers, heads, patches)
        self.lr_scales = {name: _NETWORK for name, _ in model.named_parameters() if name.startswith("model.")}

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, labels = batch
        found: DecidingOutcome = model(self.crops.normalised(images))
        kinds = zip(*found.bits, strict=True)  # all blocks' layers, all their heads, all their patches
        usage = torch.stack([usage_loss(bits, target) for bits, target in zip(kinds, self.targets, strict=True)]).sum()
        return self.supervised(found.logits, images, labels) + _USAGE * usage

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        trained: Any = model
        deciders = {f"deciders.{name}": value.to(torch.bfloat16) for name, value in trained.deciders.state_dict().items()}
        return deciders | addons.differences(load("cifar10-vit"), trained.model.state_dict(), "model.")

    def facts(self) -> dict[str, Any]:
        return {"targets": dict(zip(("layers", "heads", "patches"), self.targets, strict=True))}
