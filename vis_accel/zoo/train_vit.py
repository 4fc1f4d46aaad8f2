"""Recipe `cifar10-vit`: a vision transformer that learns from the bundled feature network as well as from the labels.

Loss     half cross entropy with the labels, half Kullback-Leibler divergence from the teacher's probabilities for the very same crop
         (Hinton et al. 2015, arXiv:1503.02531, temperature 1; same crop: Beyer et al. 2022, arXiv:2106.05237), plus the locality guidance
         of Li et al. 2022 (arXiv:2207.10026, eq. 3): the tokens of a middle block, mapped linearly, imitate the teacher's map of the same
         place, so that the transformer need not find out about neighbourhoods by itself.
Teacher  the bundled cifar10-features: the same 45,000 images taught it, so nothing of the calibration and test images leaks. It was
         trained with smoothed labels, so its probabilities are soft already.

Departs from the paper: one block imitates instead of several, and the teacher's map is normalised over its channels at each place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel.training import TrainingConfig
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.feature_net import ConvClassifier
from vis_accel.zoo.train_features import augment
from vis_accel.zoo.vit import build_vit

__all__ = ["ViTTask", "default_config"]

_CUTOUT = 8  # pixels
_BATCH = 150
_GUIDED_BLOCK = 4  # 0-based


def default_config(epochs: int = 14) -> TrainingConfig:
    """About two hours on one core."""
    per_epoch = 45_000 // _BATCH
    return TrainingConfig(
        steps=epochs * per_epoch, batch_size=_BATCH, learning_rate=3e-3, optimizer="muon", weight_decay=0.05, warmup=0.1, decay=0.9,
        ema_decay=0.995, evaluate_every=2 * per_epoch,
    )  # fmt: skip


class ViTTask:
    """Distillation on augmented images.

    Args:
        train, test: the images.
        teacher: the classifier it learns from.
    """

    name = "cifar10-vit"

    def __init__(self, train: Images, test: Images, teacher: ConvClassifier) -> None:
        torch.manual_seed(0)
        self.vit: Any = build_vit()
        self.model: nn.Module = Guided(self.vit, teacher.widths[1])
        self.teacher = teacher.eval()
        self.train, self.test = train, test
        self.examples = len(train)
        facts: Any = self.vit.pretrained_cfg
        self.mean, self.std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        images = augment(self.train.pixels[indices].float() / 255, generator, cutout=_CUTOUT)
        return images.contiguous(memory_format=torch.channels_last), self.train.labels[indices]

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, labels = batch
        soft, guide = self.taught(images)
        logits, imitation = (part.float() for part in model(self._normalised(images)))
        distance = functional.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
        return 0.5 * functional.cross_entropy(logits, labels) + 0.5 * distance + functional.mse_loss(imitation, guide)

    @torch.no_grad()
    def taught(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the teacher says of images in [0, 1]: probabilities (B x classes), and its map at each token (B x tokens x channels)."""
        teacher = self.teacher.to(images.device)
        here, mirrored = teacher.middle(images), teacher.middle(images.flip(-1))
        logits = teacher.head((teacher.features_of(here) + teacher.features_of(mirrored)) / 2)
        grid = functional.interpolate(here.float(), self.vit.patch_embed.grid_size, mode="bilinear", align_corners=False)
        places = grid.flatten(2).transpose(1, 2)
        return logits.float().softmax(1), functional.layer_norm(places, places.shape[-1:])

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean.to(images.device)) / self.std.to(images.device)

    @torch.no_grad()
    def evaluate(self, model: Any) -> dict[str, float]:
        right, device = 0, next(model.parameters()).device
        for pixels, labels in zip(self.test.pixels.split(500), self.test.labels.split(500), strict=True):
            right += int((model.vit(self._normalised(pixels.to(device).float() / 255)).argmax(1).cpu() == labels).sum())
        return {"top1": right / len(self.test)}

    def export(self, model: Any, folder: Path) -> None:
        from vis_accel.zoo.export import save_module

        save_module(model.vit, folder / "model.safetensors")


class Guided(nn.Module):
    """A vision transformer, and the map from its middle tokens to the teacher's channels, which only the training needs.

    Args:
        vit: a timm VisionTransformer.
        channels: of the teacher's map.
    """

    def __init__(self, vit: Any, channels: int) -> None:
        super().__init__()
        self.vit = vit
        self.guide = nn.Linear(vit.embed_dim, channels)
        self.block = min(_GUIDED_BLOCK, len(vit.blocks) - 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B x classes) and imitated places (B x tokens x channels) of normalised images."""
        last, (middle,) = self.vit.forward_intermediates(images, indices=[self.block], output_fmt="NLC")
        return self.vit.forward_head(last), self.guide(middle)
