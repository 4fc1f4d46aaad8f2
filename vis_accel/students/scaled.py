"""A diffusers DiT that takes the guidance scale as one input more, and the stock DiT that it is at one scale."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.distillation.guidance import ScaleEmbedding
from vis_accel.errors import DataError, NotApplicableError

__all__ = ["PREFIX", "ScaledNetwork", "biases"]

PREFIX = "scale."  # of the embedding's tensors in an add-on


class ScaledNetwork(nn.Module):
    """A network and what its blocks' time embeddings get added at a scale.

    Args:
        network: a DiTTransformer2DModel.

    Raises:
        NotApplicableError: a network whose blocks have no time embedding of their own.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.scale = ScaleEmbedding(len(_embedders(network)), _embedders(network)[0].linear_2.out_features)
        self._vectors: Tensor | None = None  # of the forward that is under way
        for index, embedder in enumerate(_embedders(network)):
            embedder.register_forward_hook(self._adder(index))

    def _adder(self, index: int) -> Any:
        def add(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            return output if self._vectors is None else output + self._vectors[index].to(output.dtype)

        return add

    def forward(self, sample: Tensor, *, scale: Tensor, **rest: Any) -> Any:
        """The network's own output at the scales `scale` (B)."""
        self._vectors = self.scale(scale)
        try:
            return self.network(sample, **rest)
        finally:
            self._vectors = None

    @torch.no_grad()
    def at(self, scale: float) -> nn.Module:
        """A stock network that is this one at one scale."""
        fixed = copy.deepcopy(self.network)
        added = self.scale(torch.tensor([scale], device=next(self.parameters()).device))[:, 0]
        for vector, embedder in zip(added, _embedders(fixed), strict=True):
            embedder._forward_hooks.clear()
            embedder.linear_2.bias += vector
        return fixed


def biases(network: nn.Module, tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """What is added at `scale` to the biases of `network`, by their names, from the tensors of a trained `ScaleEmbedding`.

    Raises:
        DataError: tensors that are not one's of this network.
    """
    found = _embedders(network)
    embedding = ScaleEmbedding(len(found), found[0].linear_2.out_features)
    try:
        embedding.load_state_dict({name: value.float() for name, value in tensors.items()})
    except RuntimeError as error:
        raise DataError(f"The scale embedding does not fit this {type(network).__name__}: {error}") from error
    with torch.no_grad():
        added = embedding(torch.tensor([scale]))[:, 0]
    names = {module: name for name, module in network.named_modules()}
    return {f"{names[embedder.linear_2]}.bias": vector for vector, embedder in zip(added, found, strict=True)}


def _embedders(network: nn.Module) -> list[Any]:
    blocks: Any = getattr(network, "transformer_blocks", ())
    found = [block.norm1.emb.timestep_embedder for block in blocks if hasattr(getattr(block.norm1, "emb", None), "timestep_embedder")]
    if not found:
        raise NotApplicableError(f"{type(network).__name__} has no time embedding in its blocks, where the guidance scale would go.")
    return found
