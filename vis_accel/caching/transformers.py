"""What caches know of diffusers' transformers: their blocks in order, and what in a block is a residual branch."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["KNOWN", "blocks_of", "branches_of", "stream", "with_stream"]

KNOWN = ("DiTTransformer2DModel", "PixArtTransformer2DModel", "SD3Transformer2DModel", "FluxTransformer2DModel")
BRANCHES = ("attn", "attn1", "attn2", "ff", "ff_context")


def blocks_of(network: Any) -> list[Any]:
    """All blocks in the order they run."""
    return [*network.transformer_blocks, *getattr(network, "single_transformer_blocks", ())]


def branches_of(block: Any) -> list[Any]:
    """The modules whose outputs a block gates and adds to its streams; none if it adds one projection of several."""
    if not hasattr(block, "ff"):
        return []
    return [module for name in BRANCHES if (module := getattr(block, name, None)) is not None]


def stream(output: Any) -> Tensor:
    """The image tokens in what a block returns: the output itself, or the second of (text tokens, image tokens)."""
    found: Tensor = output if isinstance(output, Tensor) else output[1]
    return found


def with_stream(hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a block returns that was called with `args` and `kwargs`, if `hidden` are its image tokens and its text tokens are unchanged."""
    if "temb" not in kwargs:  # DiT and PixArt: one stream
        return hidden
    return kwargs["encoder_hidden_states"], hidden
