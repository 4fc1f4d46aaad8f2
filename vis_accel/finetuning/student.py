"""The network as it is trained: its outputs in the form the losses want, frozen parts that stay as they are, patches left out.

What is frozen is frozen to the bit: a batch normalisation whose parameters are not trained does not update its statistics either.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vis_accel.errors import NotApplicableError

__all__ = ["PREFIX", "Outputs", "Student", "drop_patches"]

PREFIX = "holder."  # of the network's parameters' names in a student


class Outputs(NamedTuple):
    """Logits (B x classes); those of the second head and mapped features (B x teacher's channels) where a loss asks for them."""

    logits: Tensor
    token: Tensor | None = None
    features: Tensor | None = None


class Student(nn.Module):
    """A network, or peft's holder of it.

    Args:
        holder: the network, with or without adapters.
        distill: what is learned from a teacher: None, "logit", "token" or "feature".
        size: side of the images in pixels.
        channels: of the teacher's features, for "feature".
        seed: of the map to them.

    Raises:
        NotApplicableError: token distillation of a network without a second head, feature distillation of one without pooled features.
    """

    def __init__(self, holder: Any, *, distill: str | None = None, size: int = 224, channels: int = 0, seed: int = 0) -> None:
        super().__init__()
        self.holder = holder
        self.distill = distill
        self.projection: nn.Linear | None = None
        network = self.network
        if distill == "token":
            if not hasattr(network, "set_distilled_training"):
                message = f"{type(network).__name__} has no second head for a teacher's decisions."
                raise NotApplicableError(message, hint="--distill logit, or a model like timm/levit_128s")
            network.set_distilled_training(True)
        if distill == "feature":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                self.projection = nn.Linear(_pooled_width(network, size), channels)

    @property
    def network(self) -> Any:
        """The timm network inside; with adapters, its layers hold them."""
        return self.holder.get_base_model() if hasattr(self.holder, "get_base_model") else self.holder

    def forward(self, images: Tensor) -> Outputs:
        """What the losses need of normalised images (B x 3 x H x W)."""
        if self.projection is not None:
            network = self.network
            pooled = network.forward_head(network.forward_features(images), pre_logits=True)
            return Outputs(_logits(network, pooled), features=self.projection(pooled.float()))
        found = self.holder(images)
        if isinstance(found, tuple):
            return Outputs(found[0], token=found[1])
        return Outputs(found)

    def train(self, mode: bool = True) -> Student:
        """As everywhere; but batch normalisations whose parameters are frozen stay in evaluation mode."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, _BatchNorm) and not any(parameter.requires_grad for parameter in module.parameters()):
                module.eval()
        return self

    @property
    def trained(self) -> int:
        """Number of parameters that are trained and kept (the map to a teacher's features is not kept)."""
        return sum(p.numel() for name, p in self.named_parameters() if p.requires_grad and name.startswith(PREFIX))


def drop_patches(network: Any, rate: float) -> Any:
    """Lets `network` leave out the share `rate` of its patches at random during training, and returns the layer that does it.

    PatchDropout (Liu et al. 2023, arXiv:2208.07220): after the positions are added; the class token and other prefix tokens stay; in
    evaluation the layer passes everything.

    Raises:
        NotApplicableError: a network that has no place for it.
    """
    from timm.layers import PatchDropout
    from timm.layers.patch_dropout import PatchDropoutWithIndices

    if not hasattr(network, "patch_drop") or not hasattr(network, "num_prefix_tokens"):
        message = f"{type(network).__name__} cannot leave out patches: its layers need their grid."
        raise NotApplicableError(message, hint="leave out --patch-dropout; plain vision transformers (vit_*, deit*, eva*) take it")
    plain = isinstance(network.patch_drop, (nn.Identity, PatchDropout))
    layer = (PatchDropout if plain else PatchDropoutWithIndices)(rate, num_prefix_tokens=network.num_prefix_tokens)
    network.patch_drop = layer
    return layer


def _pooled_width(network: Any, size: int) -> int:
    """Channels of the pooled features, found by a trial, which also holds the heads on them against the network's own logits."""
    images = torch.linspace(-1, 1, 2 * 3 * size * size).view(2, 3, size, size)
    network.eval()
    with torch.no_grad():
        pooled = network.forward_head(network.forward_features(images), pre_logits=True)
        fits = (
            isinstance(pooled, Tensor)
            and pooled.ndim == 2
            and torch.allclose(_logits(network, pooled), network(images), rtol=1e-3, atol=1e-4)
        )
    if not fits:
        raise NotApplicableError(
            f"The head of {type(network).__name__} does not work on one vector of pooled features.", hint="--distill logit"
        )
    return int(pooled.shape[1])


def _logits(network: Any, pooled: Tensor) -> Tensor:
    """The heads on pooled features; two are averaged, as distilled networks do."""
    heads = network.get_classifier()
    found: Tensor = torch.stack([head(pooled) for head in heads]).mean(dim=0) if isinstance(heads, tuple) else heads(pooled)
    return found
