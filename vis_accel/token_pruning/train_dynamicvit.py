"""Trains the selectors of dynamicvit or of package for cifar10-vit, and the network along with them.

Paper    Rao et al. 2021, arXiv:2106.02034, section on training: masked patches, loss of the shares kept (weight 2) and distance of the kept
         tokens from those of the frozen original (weight 1/2). Kong et al. 2022, arXiv:2112.13890, trains its selectors alike.
Departs  the classes are imitated from the bundled feature network instead of the original; a few epochs instead of 30, so the network
         learns at a sixth of the selectors' rate instead of a hundredth; all selectors from the start (Kong et al. insert them one
         by one).
Cost     a forward of the original besides: about 70 images a second on one core.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel import addons
from vis_accel.token_pruning.dynamicvit import Dynamicvit
from vis_accel.token_pruning.losses import ratio_loss, token_distillation
from vis_accel.token_pruning.masked import MaskedModel, Outcome
from vis_accel.token_pruning.method_task import MethodTask, config
from vis_accel.token_pruning.package import Package
from vis_accel.token_pruning.predictor import SELECTORS
from vis_accel.training import TrainingConfig
from vis_accel.vit_models.view import view
from vis_accel.zoo import load
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.feature_net import ConvClassifier

__all__ = ["SelectionTask", "default_config"]

_RATIO, _TOKENS = 2.0, 0.5  # weights of the loss
_NETWORK = 1 / 6  # its learning rate, of the selectors'


def default_config(epochs: int = 2) -> TrainingConfig:
    """About 20 minutes on one core."""
    return config(epochs, 3e-3)


class SelectionTask(MethodTask):
    """Trains selectors.

    Args:
        method: dynamicvit, or package(selector="trained").
        train, calibration, test: the images.
        teacher: the bundled feature network.
    """

    def __init__(self, method: Dynamicvit | Package, train: Images, calibration: Images, test: Images, teacher: ConvClassifier) -> None:
        torch.manual_seed(0)
        network, self.original = load("cifar10-vit"), load("cifar10-vit").eval().requires_grad_(False)
        known = view(network)
        method.counts(known)  # its options fit this model, or it says so
        self.stages, kept = method.blocks(known), method.kept(known)
        selectors = nn.ModuleList(SELECTORS[method.name](known.width, known.blocks[0].heads) for _ in self.stages)
        model = MaskedModel(network, selectors, kept, package=bool(method.extra))
        super().__init__(method, model, train, calibration, test, teacher)
        self.prefix, self.patches = known.prefix, known.patches
        self.shares = [count / known.patches for count in kept.values()]
        self.lr_scales = {name: _NETWORK for name, _ in model.named_parameters() if name.startswith("model.")}

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, labels = batch
        inputs = self.crops.normalised(images)
        found: Outcome = model(inputs)
        with torch.no_grad():
            wanted = self.original.to(inputs.device).forward_intermediates(inputs, indices=1, output_fmt="NLC", intermediates_only=True)
        last = self.prefix + self.patches  # packages, which the original has not, come behind
        distance = token_distillation(found.tokens[:, self.prefix : last], wanted[-1], found.kept[:, self.prefix : last])
        return self.supervised(found.logits, images, labels) + _RATIO * ratio_loss(found.stages, self.shares) + _TOKENS * distance

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        trained: Any = model
        selectors = {f"selectors.{name}": value.to(torch.bfloat16) for name, value in trained.selectors.state_dict().items()}
        return selectors | addons.differences(load("cifar10-vit"), trained.model.state_dict(), "model.")

    def facts(self) -> dict[str, Any]:
        return {"stages": list(self.stages)}
