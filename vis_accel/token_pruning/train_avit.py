"""Trains cifar10-vit to halt its tokens.

Paper    Yin et al. 2022, arXiv:2112.07658: loss of the classes, plus the mean of blocks run and remainder, plus the distance of the
         distribution of halting over blocks from a Gaussian around a target depth. The whole network is trained; it has no parameters
         more than before.
Departs  the distribution is that of the weights (scores, and the remainder at the halt), which sum to 1 for each token; gamma, beta and
         the weights of the terms are chosen for this model and a few epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel import addons
from vis_accel.token_pruning.avit import Avit
from vis_accel.token_pruning.halting import HaltingModel, HaltingOutcome
from vis_accel.token_pruning.losses import depth_loss, ponder_loss
from vis_accel.token_pruning.method_task import MethodTask, config
from vis_accel.training import TrainingConfig
from vis_accel.zoo import load
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.feature_net import ConvClassifier

__all__ = ["HaltingTask", "default_config"]

_GAMMA, _BETA = 5.0, 10.0
_PONDER, _DEPTH = 5e-3, 0.1  # weights of the loss


def default_config(epochs: int = 3) -> TrainingConfig:
    """About 20 minutes on one core."""
    return config(epochs, 1e-3)


class HaltingTask(MethodTask):
    """Trains a model whose tokens halt.

    Args:
        train, calibration, test: the images.
        teacher: the bundled feature network.
        depth: block (0-based) after which tokens shall halt on average.
    """

    def __init__(self, train: Images, calibration: Images, test: Images, teacher: ConvClassifier, *, depth: float = 5.0) -> None:
        torch.manual_seed(0)
        method = Avit()
        super().__init__(method, HaltingModel(load("cifar10-vit"), _GAMMA, _BETA, method.epsilon), train, calibration, test, teacher)
        self.depth = depth

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, labels = batch
        found: HaltingOutcome = model(self.crops.normalised(images))
        spent = _PONDER * ponder_loss(found.ponder) + _DEPTH * depth_loss(found.weights, self.depth)
        return self.supervised(found.logits, images, labels) + spent

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        trained: Any = model
        return addons.differences(load("cifar10-vit"), trained.model.state_dict())

    def facts(self) -> dict[str, Any]:
        return {"gamma": _GAMMA, "beta": _BETA, "target_depth": self.depth}
