"""Channels-last: the weights of convolutions with the channels innermost in memory, the order in which kernels read them.

Source   PyTorch's "Channels Last Memory Format", no paper; values and shapes stay as they are, only strides change.
Cost     the convolution weights a second time. What flows between two convolutions takes their order by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vis_accel.errors import NoEffectError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.networks import networks_of

__all__ = ["ChannelsLast"]


@dataclass(frozen=True, kw_only=True)
class ChannelsLast(Method):
    """Weights of convolutions, and what comes in, in channels-last order."""

    name: ClassVar[str] = "channels-last"
    family: ClassVar[Family] = "weights"
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("memory layout", "replaces"),)

    vae: bool = option(True, "whether a pipeline's decoder is among what is changed")

    def check_target(self, view: Any) -> None:
        networks_of(self, view, vae=self.vae)

    def apply(self, target: Any, context: Context) -> Handle:
        """Reorders the weights; raises NoEffectError for a network without convolutions over an area."""
        networks = networks_of(self, context.view, vae=self.vae)
        found = [module for network in networks for module in network.modules() if isinstance(module, nn.Conv2d)]
        if not found:
            raise NoEffectError(f"{self.name} would change nothing: {type(networks[0]).__name__} has no convolution.")
        with Handle.building(target, str(self)) as handle:
            for module in found:
                handle.swap_item(module._parameters, "weight", _reordered(module.weight))
            for network in networks:
                handle.add_hook(lambda network=network: network.register_forward_pre_hook(_incoming, with_kwargs=True))  # type: ignore[misc]
        return handle


def _reordered(weight: Tensor) -> nn.Parameter:
    return nn.Parameter(weight.detach().contiguous(memory_format=torch.channels_last), requires_grad=weight.requires_grad)


def _incoming(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return tuple(map(_ordered, args)), {name: _ordered(value) for name, value in kwargs.items()}


def _ordered(value: Any) -> Any:
    return value.contiguous(memory_format=torch.channels_last) if isinstance(value, Tensor) and value.ndim == 4 else value
