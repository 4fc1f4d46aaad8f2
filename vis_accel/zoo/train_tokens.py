"""Fine-tuning of the bundled vision transformer under a recipe: it learns to live with the tokens that the recipe leaves it.

Loss     half cross entropy with the labels, half Kullback-Leibler divergence from the probabilities of the bundled feature network for the
         same crop, as in `train_vit`; tokens are dropped or merged during training as they will be afterwards, so training is faster too.
Result   an add-on of the method `tuned`: the model's parameters, fine-tuned (`tuned(weights=...) + the recipe`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel import addons
from vis_accel.apply import accelerate
from vis_accel.handle import Handle
from vis_accel.training import TrainingConfig
from vis_accel.zoo.cifar10 import Images
from vis_accel.zoo.feature_net import ConvClassifier
from vis_accel.zoo.train_features import augment

__all__ = ["Crops", "FineTuning", "TokenTask", "default_config"]

_CUTOUT = 8  # pixels
_BATCH = 150


def default_config(epochs: int = 3) -> TrainingConfig:
    """About 15 minutes on one core."""
    return TrainingConfig(
        steps=epochs * (45_000 // _BATCH), batch_size=_BATCH, learning_rate=5e-4, optimizer="muon", weight_decay=0.05, warmup=0.1,
        decay=0.9, ema_decay=0.99,
    )  # fmt: skip


class Crops:
    """Augmented training images with what the teacher says of them, as fine-tunings of cifar10-vit want them.

    Args:
        train: the images.
        teacher: the classifier that is imitated.
        facts: `pretrained_cfg` of the student: what its images are normalised by.
    """

    def __init__(self, train: Images, teacher: ConvClassifier, facts: Any) -> None:
        self.train, self.teacher = train, teacher.eval()
        self.mean, self.std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("mean", "std"))

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (B x 3 x 32 x 32 in [0, 1]), cropped, mirrored and cut out at random, and labels (B)."""
        images = augment(self.train.pixels[indices].float() / 255, generator, cutout=_CUTOUT)
        return images.contiguous(memory_format=torch.channels_last), self.train.labels[indices]

    def normalised(self, images: Tensor) -> Tensor:
        """What the student takes, of images in [0, 1]."""
        return (images - self.mean.to(images.device)) / self.std.to(images.device)

    @torch.no_grad()
    def soft_labels(self, images: Tensor) -> Tensor:
        """The teacher's probabilities (B x classes)."""
        logits: Tensor = self.teacher.to(images.device)(images)
        return logits.float().softmax(1)

    @torch.no_grad()
    def top1(self, model: nn.Module, images: Images, batch: int = 500) -> float:
        """Share of `images` the student puts into the right class."""
        right, device = 0, next(model.parameters()).device
        for pixels, labels in zip(images.pixels.split(batch), images.labels.split(batch), strict=True):
            right += int((model(self.normalised(pixels.to(device).float() / 255)).argmax(1).cpu() == labels).sum())
        return right / len(images)


class FineTuning:
    """Fine-tunes a classifier of 32 x 32 images by labels and teacher.

    Args:
        name: of the task.
        model: is trained in place.
        crops: the images and the teacher.
        test: for the scores.
    """

    def __init__(self, name: str, model: nn.Module, crops: Crops, test: Images) -> None:
        self.name, self.model, self.crops, self.test, self.examples = name, model, crops, test, len(crops.train)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        return self.crops.batch(indices, generator)

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, labels = batch
        soft = self.crops.soft_labels(images)
        logits = model(self.crops.normalised(images)).float()
        distance = functional.kl_div(logits.log_softmax(1), soft, reduction="batchmean")
        return 0.5 * functional.cross_entropy(logits, labels) + 0.5 * distance

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"top1": self.crops.top1(model, self.test)}


class TokenTask(FineTuning):
    """Fine-tunes cifar10-vit under a recipe.

    Args:
        recipe: on tokens: what the model shall learn to live with.
        train, test: the images.
        teacher: the bundled feature network.
        bits: of what is written, a matrix's difference from the model: 8 or 4.
    """

    def __init__(self, recipe: str, train: Images, test: Images, teacher: ConvClassifier, *, bits: int = 8) -> None:
        from vis_accel.zoo import load

        model = load("cifar10-vit")
        super().__init__(f"cifar10-vit under {recipe}", model, Crops(train, teacher, model.pretrained_cfg), test)
        self.recipe, self.bits = recipe, bits
        self.handle = accelerate(model, recipe)
        self.before = self.crops.top1(model, test)

    def export(self, model: nn.Module, folder: Path) -> None:
        from vis_accel.zoo import load

        base, written = load("cifar10-vit"), load("cifar10-vit")
        weights = addons.differences(base, model.state_dict(), bits=self.bits)
        with Handle.building(written, "the rounded weights") as handle:
            addons.swap_parameters(handle, written, weights)
        with accelerate(written, self.recipe):
            found = self.crops.top1(written.eval(), self.test)
        facts = {"recipe": self.recipe, "top1_before": self.before, "top1": found, "n": len(self.test), "bits": self.bits}
        addons.save(folder / "addon.safetensors", weights, method="tuned", model=base, facts=facts)
