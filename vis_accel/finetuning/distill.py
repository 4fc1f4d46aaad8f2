"""Learning from a teacher: what it says of an image, and how far the student is from that.

logit     T^2 KL(teacher || student) of probabilities softened by T (Hinton et al. 2015, arXiv:1503.02531, section 2).
token     the second head of a distilled network learns the teacher's decision: cross entropy with its most likely class, or, with a
          temperature, the softened form (Touvron et al. 2021, arXiv:2012.12877, section 4).
feature   mean square of the difference between the student's pooled features, mapped linearly, and the teacher's, which are normalised over
          their channels first, so that no teacher is louder than another (Romero et al. 2015, arXiv:1412.6550, eq. 3, on pooled features).

Both see the same crop, each at its own size (Beyer et al. 2022, arXiv:2106.05237).
Shapes   images B x 3 x H x W in [0, 1]; logits B x classes; features B x channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.finetuning.opening import class_names, network_of

__all__ = ["Teacher", "feature_distance", "open_teacher", "softened_distance", "token_distance"]


def softened_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || student), the mean over the images, from logits."""
    ours, theirs = (student / temperature).log_softmax(dim=1), (teacher / temperature).log_softmax(dim=1)
    return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def token_distance(student: Tensor, teacher: Tensor, temperature: float | None) -> Tensor:
    """The distance of the second head's logits from the teacher's: hard without a temperature."""
    if temperature is None:
        return functional.cross_entropy(student, teacher.argmax(dim=1))
    return softened_distance(student, teacher, temperature)


def feature_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean square difference of the student's mapped features from the teacher's normalised ones."""
    return functional.mse_loss(student, functional.layer_norm(teacher, teacher.shape[-1:]))


class Teacher:
    """A trained classifier that is only asked.

    Args:
        name: for messages.
        network: a timm classifier, or the bundled ConvClassifier.
    """

    def __init__(self, name: str, network: Any) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False)
        facts = getattr(network, "pretrained_cfg", None)
        if facts is None:  # the bundled one normalises by itself
            self.mean, self.std, self.size, self.classes = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1), 32, network.head.out_features
        else:
            self.mean, self.std = (torch.tensor(facts[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
            self.size, self.classes = int(facts["input_size"][-1]), network.num_classes

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """What it says of images in [0, 1], of any size."""
        found: Tensor = self.network(self._prepared(images))
        return found.float()

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Its pooled features, before the head.

        Raises:
            NotApplicableError: a network that has none.
        """
        prepared = self._prepared(images)
        found = self.network.forward_features(prepared)
        if hasattr(self.network, "forward_head"):
            found = self.network.forward_head(found, pre_logits=True)
        if not isinstance(found, Tensor) or found.ndim != 2:
            raise NotApplicableError(f"The teacher {self.name} has no pooled features.", hint="--distill logit")
        return found.float()

    def _prepared(self, images: Tensor) -> Tensor:
        self.network.to(images.device)
        if images.shape[-1] != self.size:
            images = functional.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True, align_corners=False)
        return (images - self.mean.to(images.device)) / self.std.to(images.device)


def open_teacher(name: str, *, kind: str, classes: Sequence[str]) -> Teacher:
    """Opens a teacher and holds it against the data.

    Args:
        name: cifar10-features, timm/NAME with its weights, or a folder that a fine-tuning wrote.
        kind: what is learned from it: "logit", "token" or "feature".
        classes: of the data.

    Raises:
        UsageError: its classes are others, where its logits matter.
    """
    network = network_of(name)
    if not hasattr(network, "pretrained_cfg") and not hasattr(network, "head"):
        raise NotApplicableError(f"{name} is no classifier.", hint="--teacher cifar10-features, timm/NAME, or a folder")
    teacher = Teacher(name, network)
    if kind == "feature":
        return teacher
    hint = "--distill feature does without the teacher's classes; or fine-tune the teacher on these data first"
    if teacher.classes != len(classes):
        raise UsageError(f"The teacher {name} knows {teacher.classes} classes and the data have {len(classes)}.", hint=hint)
    known = class_names(name, network)
    if known is not None and tuple(known) != tuple(classes):
        here, there = next((pair for pair in zip(classes, known, strict=True) if pair[0] != pair[1]), ("", ""))
        raise UsageError(f"The teacher {name} knows other classes than the data have: {there} in the place of {here}.", hint=hint)
    return teacher
