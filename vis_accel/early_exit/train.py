"""Trains the exits of cifar10-vit: heads with the backbone, or heads alone.

Source   the order follows Kubaty et al. 2024, "How to Train Your Multi-Exit Model?", arXiv:2407.14320: mixed (a trained backbone, then
         everything together) beats heads alone and everything from scratch. Loss of each classifier: half cross entropy, half divergence
         from the teacher, as the backbone was trained; exits also imitate the final logits (Xu et al. 2023, LGViT, arXiv:2308.00255,
         section 3.3: 0.3 x KL at temperature 2). With `frozen`, the backbone keeps every bit and only heads learn.
Result   an add-on: heads, the tuned backbone as 8-bit differences from the model's own weights, and the logits of all classifiers on the
         calibration images, which no training has seen: those of the rounded weights, which are the ones that run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn import functional

from vis_accel import addons
from vis_accel.early_exit.heads import build_head
from vis_accel.handle import Handle
from vis_accel.training import TrainingConfig
from vis_accel.vit_models.view import view
from vis_accel.zoo import load
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.feature_net import ConvClassifier
from vis_accel.zoo.train_tokens import Crops

__all__ = ["ExitTask", "MultiExit", "default_config", "multi_exit_loss"]

DEFAULT_EXITS = ((2, "local"), (4, "local"), (6, "mlp"))  # after these blocks, 0-based
_BATCH = 150
_TEMPERATURE = 2.0


def default_config(epochs: int = 4) -> TrainingConfig:
    """About 25 minutes on one core."""
    return TrainingConfig(
        steps=epochs * (45_000 // _BATCH), batch_size=_BATCH, learning_rate=1e-3, optimizer="muon", weight_decay=0.05, warmup=0.1,
        decay=0.9, ema_decay=0.99,
    )  # fmt: skip


def multi_exit_loss(exits: Sequence[Tensor], final: Tensor, labels: Tensor, soft: Tensor) -> Tensor:
    """The final classifier's loss plus the exits' mean loss (logits B x classes each, labels B, teacher's probabilities)."""

    def supervised(logits: Tensor) -> Tensor:
        distance = functional.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
        return 0.5 * functional.cross_entropy(logits, labels) + 0.5 * distance

    own = (final.detach() / _TEMPERATURE).softmax(1)
    total = supervised(final)
    for logits in exits:
        imitation = functional.kl_div((logits / _TEMPERATURE).log_softmax(1), own, reduction="batchmean") * _TEMPERATURE**2
        total = total + (0.7 * supervised(logits) + 0.3 * imitation) / len(exits)
    return total


class MultiExit(nn.Module):
    """A vision transformer with heads after some of its blocks.

    Args:
        vit: a timm VisionTransformer.
        exits: (block, design of the head), rising.
    """

    def __init__(self, vit: Any, exits: Sequence[tuple[int, str]]) -> None:
        super().__init__()
        found = view(vit)
        self.vit = vit
        self.places = [block for block, _ in exits]
        self.heads = nn.ModuleList(
            build_head(design, width=found.width, classes=found.classes, grid=found.grid, prefix=found.prefix) for _, design in exits
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits of all exits and, last, of the full model (exits + 1 x B x classes) for normalised images."""
        last, middle = self.vit.forward_intermediates(images, indices=self.places, output_fmt="NLC", return_prefix_tokens=True)
        tokens = [torch.cat((prefix, patches), dim=1) for patches, prefix in middle]
        answers = [head(x) for head, x in zip(self.heads, tokens, strict=True)]
        return torch.stack([*answers, self.vit.forward_head(last)])


class ExitTask:
    """Trains the exits.

    Args:
        train, calibration, test: the images.
        teacher: the bundled feature network.
        exits: (block, design of the head), rising.
        frozen: leave the backbone as it is.
    """

    name = "early-exit"

    def __init__(
        self, train: Images, calibration: Images, test: Images, teacher: ConvClassifier, *,
        exits: Sequence[tuple[int, str]] = DEFAULT_EXITS, frozen: bool = False,
    ) -> None:  # fmt: skip
        torch.manual_seed(0)
        vit = load("cifar10-vit")
        self.exits, self.frozen = tuple(exits), frozen
        self.model: nn.Module = MultiExit(vit, exits)
        if frozen:
            freeze_batch_norm_2d(vit.requires_grad_(False))  # running statistics of the stem change without any gradient
        self.crops = Crops(train, teacher, vit.pretrained_cfg)
        self.calibration, self.test, self.examples = calibration, test, len(train)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return self.crops.batch(indices, generator)

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, labels = batch
        soft = self.crops.soft_labels(images)
        *exits, final = model(self.crops.normalised(images)).float()
        return multi_exit_loss(exits, final, labels, soft)

    @torch.no_grad()
    def logits(self, model: nn.Module, images: Images) -> Tensor:
        """Of all classifiers: exits + 1 x n x classes."""
        device = next(model.parameters()).device
        parts = [model(self.crops.normalised(pixels.to(device).float() / 255)).float().cpu() for pixels in images.pixels.split(500)]
        return torch.cat(parts, dim=1)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        right = (self.logits(model, self.test).argmax(2) == self.test.labels).float().mean(dim=1)
        names = [*(f"exit {block}" for block, _ in self.exits), "top1"]
        return dict(zip(names, right.tolist(), strict=True))

    def export(self, model: nn.Module, folder: Path) -> None:
        network: Any = model
        base = load("cifar10-vit")
        tensors: dict[str, Tensor] = {}
        for (block, _), head in zip(self.exits, network.heads, strict=True):
            tensors |= {f"head.{block}.{name}": value.to(torch.bfloat16) for name, value in head.state_dict().items()}
        if not self.frozen:
            tensors |= addons.differences(base, network.vit.state_dict(), "model.")
        shipped = _as_shipped(self.exits, tensors)
        calibration = {
            "calibration.logits": self.logits(shipped, self.calibration).to(torch.float16),
            "calibration.labels": self.calibration.labels.to(torch.uint8),
        }
        facts = {"exits": self.exits, "recipe": "early-exit", "scores": self.evaluate(shipped), "n": len(self.test), "frozen": self.frozen}
        addons.save(folder / "addon.safetensors", tensors | calibration, method="early-exit", model=base, facts=facts)


def _as_shipped(exits: Sequence[tuple[int, str]], tensors: dict[str, Tensor]) -> MultiExit:
    """The network that the add-on makes: its parameters are rounded."""
    vit = load("cifar10-vit")
    with Handle.building(vit, "the rounded weights") as handle:
        own = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        addons.swap_parameters(handle, vit, own)
    network = MultiExit(vit, exits)
    for (block, _), head in zip(exits, network.heads, strict=True):
        start = f"head.{block}."
        head.load_state_dict({name.removeprefix(start): value.float() for name, value in tensors.items() if name.startswith(start)})
    return network.eval()
