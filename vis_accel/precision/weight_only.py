"""Weight-only: weights are kept in 8 or 4 bits and become floats again in each call; for memory, not for speed.

Source   groups of weights with a scale each, to the nearest number: the plain baseline of Frantar et al. 2022 (GPTQ), arXiv:2210.17323.
Weights  symmetric, w ~ s q: 8 bits with a scale for each output channel, q in -127 .. 127; 4 bits with a scale for each `group` inputs of a
         channel, by a search over clipping ratios, q in -7 .. 7, two of them in a byte.
Kept     activations, sums, norms and biases stay as they are. Convolutions keep 8 bits at least: their weights are few.
Memory   a quarter of float32 at 8 bits; at 4 bits an eighth, and a float32 scale for each group (1/16 more at 64). With
         keep_original=True, which is the default so that the method can be removed, nothing is saved yet: the float weights are kept too.
         The report says both numbers, in bytes.
Cost     each call makes the float weight of one layer anew: a pass over the weights, felt at small batches.
Left out embeddings, which are looked up and not multiplied, and weights of fewer than 1,024 numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vis_accel.errors import ConflictError, NoEffectError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.networks import networks_of
from vis_accel.precision.layers import Layer, candidates, float_layer
from vis_accel.precision.rounding import best_scales, channel_scales, round_weight

__all__ = ["WeightOnly", "halves_of_bytes", "two_in_a_byte"]

_FEWEST = 1024  # numbers in a weight: below, scales and bookkeeping eat what is saved


@dataclass(frozen=True, kw_only=True)
class WeightOnly(Method):
    """Weights in few bits.

    Attributes:
        bits: of a weight of a Linear; convolutions have 8.
        group: at 4 bits, inputs that share a scale; a layer whose width it does not divide has one scale a channel.
        vae: whether a pipeline's decoder is among them.
        keep_original: False frees the float weights; the method can then not be removed.
    """

    name: ClassVar[str] = "weight-only"
    family: ClassVar[Family] = "precision"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("matrix products", "replaces"),)

    bits: Literal[8, 4] = option(8, "the bits of a weight")
    group: int = option(64, "how many inputs share a scale, at 4 bits", low=8)
    vae: bool = option(True, "whether a pipeline's decoder is among what is rounded")
    keep_original: bool = option(True, "whether the float weights are kept, so that the method can be removed")

    def check_target(self, view: Any) -> None:
        networks = networks_of(self, view, vae=self.vae)
        if any(hasattr(vars(module).get("forward"), "bits") for network in networks for module in network.modules()):
            raise ConflictError(f"{self.name}: this network is quantized already.", hint="remove the other recipe first")

    def apply(self, target: Any, context: Context) -> Handle:
        """Rounds the weights, and puts layers that unpack them in the place of the float ones."""
        networks = networks_of(self, context.view, vae=self.vae)
        chosen = [layer for network in networks for layer in candidates(network) if layer.module.weight.numel() >= _FEWEST]
        if not chosen:
            raise NoEffectError(f"{self.name} found no weight of {_FEWEST} numbers or more in {type(networks[0]).__name__}.")
        before = sum(parameter.nbytes for network in networks for parameter in network.parameters())
        with Handle.building(target, str(self), keep_original=self.keep_original) as handle:
            small, large = 0, 0
            for layer in chosen:
                large += layer.module.weight.nbytes
                small += self._replace(handle, layer)
            told = f"{len(chosen)} weights, {large:,} bytes, in {small:,}; all parameters {before:,} bytes, "
            freed = (
                f"now {before - large + small:,}" if not self.keep_original else f"and {small:,} more until keep_original=False frees them"
            )
            handle.reports(lambda: {self.name: told + freed})
        return handle

    def _replace(self, handle: Handle, layer: Layer) -> int:
        """Puts one layer in; the bytes its weight takes now."""
        module = layer.module
        packed = PackedWeight(module.weight, 8 if isinstance(module, nn.Conv2d) else self.bits, self.group)

        def forward(x: Tensor) -> Tensor:
            return float_layer(module, x, packed.values(x.dtype))

        forward.bits = (packed.bits, 0)  # type: ignore[attr-defined]  # a layer is not rounded twice
        handle.swap_forward(module, forward)
        if not self.keep_original:
            empty = nn.Parameter(module.weight.new_empty(0), requires_grad=False)  # others ask a weight for its dtype and device
            handle.swap_item(module._parameters, "weight", empty)
        return packed.bytes


class PackedWeight:
    """A weight in few bits.

    Args:
        weight: [O, ...].
        bits: 8 or 4.
        group: inputs that share a scale, at 4 bits, if it divides their number.
    """

    def __init__(self, weight: Tensor, bits: int, group: int) -> None:
        self.shape, self.bits = weight.shape, bits
        inputs = weight.numel() // len(weight)
        share = group if bits == 4 and inputs % group == 0 else inputs
        rows = weight.detach().float().reshape(-1, share)  # a scale each
        self.scales = (best_scales(rows, bits) if bits == 4 else channel_scales(rows, bits)).reshape(-1, 1)
        whole = round_weight(rows, self.scales.flatten(), bits)
        self.pairs = bits == 4 and share % 2 == 0
        self.whole = two_in_a_byte(whole) if self.pairs else whole

    @property
    def bytes(self) -> int:
        """With the scales."""
        return self.whole.nbytes + self.scales.nbytes

    def values(self, dtype: torch.dtype) -> Tensor:
        """The float weight, [O, ...]."""
        whole = halves_of_bytes(self.whole) if self.pairs else self.whole
        return (whole.float() * self.scales).reshape(self.shape).to(dtype)


def two_in_a_byte(whole: Tensor) -> Tensor:
    """Numbers from -8 to 7, int8 [R, 2K], as bytes [R, K]: uint8, the first of a pair in the lower half."""
    low, high = whole[:, ::2].to(torch.uint8) & 15, whole[:, 1::2].to(torch.uint8) & 15
    return low | (high << 4)


def halves_of_bytes(pairs: Tensor) -> Tensor:
    """The other way: uint8 [R, K] -> int8 [R, 2K]."""
    both = torch.stack([pairs & 15, pairs >> 4], dim=-1).to(torch.int8)
    signed: Tensor = (both ^ 8) - 8  # 8 .. 15 stand for -8 .. -1
    return signed.flatten(1)
