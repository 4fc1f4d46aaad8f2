"""Small linear heads that say before each block what of it an image needs: the decision networks of AdaViT, and their bits.

Paper    Meng et al. 2022, "AdaViT: Adaptive Vision Transformers for Efficient Image Recognition", arXiv:2111.15668. From the block's
         input: the class token says which attention heads, and which of the two sub-layers (attention, MLP), are used; each patch says
         of itself whether it takes part (so the authors' code; a linear map of width C -> 1). Bits: sigmoid > 0.5; in training a
         hard Gumbel-sigmoid at temperature 5, straight through. The first block is always used whole.

Shapes   B images, P patches, H heads, C channels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from vis_accel.errors import DataError

__all__ = ["Bits", "Decider", "deciders_from", "gumbel_sigmoid"]

_TEMPERATURE = 5.0
_OPEN = 3.0  # bias at the start of a training: nearly everything is used


class Bits(NamedTuple):
    """What of a block is used: layers B x 2 (attention, MLP), heads B x H, patches B x P. 0 and 1, as float in training, else bool."""

    layers: Tensor
    heads: Tensor
    patches: Tensor


class Decider(nn.Module):
    """The three heads of one block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.layers, self.heads, self.patches = nn.Linear(width, 2), nn.Linear(width, heads), nn.Linear(width, 1)
        for linear in (self.layers, self.heads, self.patches):
            nn.init.normal_(linear.weight, std=0.01)
            nn.init.constant_(linear.bias, _OPEN)

    def forward(self, x: Tensor, prefix: int) -> Bits:
        """Logits, of the input of the block (B x N x C)."""
        first = x[:, 0]
        return Bits(self.layers(first), self.heads(first), self.patches(x[:, prefix:])[..., 0])


def gumbel_sigmoid(logits: Tensor) -> Tensor:
    """Bits drawn with logistic noise at temperature 5: 0 or 1 forwards, the gradient of the sigmoid backwards."""
    logits = logits.float()
    uniform = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
    soft = ((logits + uniform.logit()) / _TEMPERATURE).sigmoid()
    return (soft > 0.5).float() - soft.detach() + soft


def deciders_from(tensors: dict[str, Tensor], width: int, heads: int, blocks: int) -> list[Decider]:
    """The heads of blocks 1 .. blocks - 1, from the tensors `deciders.INDEX.NAME` of an add-on.

    Raises:
        DataError: tensors that are not those of such heads.
    """
    with torch.random.fork_rng(devices=[]):
        found = [Decider(width, heads) for _ in range(blocks - 1)]
    own = {name.removeprefix("deciders."): tensor.float() for name, tensor in tensors.items() if name.startswith("deciders.")}
    try:
        nn.ModuleList(found).load_state_dict(own)
    except RuntimeError as error:
        raise DataError(f"The add-on does not hold the decision heads of {blocks} blocks of width {width}: {error}") from error
    return [decider.eval().requires_grad_(False) for decider in found]
