"""Bf16: matrix products and convolutions in bfloat16, what must be exact (norms, softmax, residual sums) as autocast decides.

Paper    Kalamkar et al. 2019, arXiv:1905.12322: float32's exponent with 8 bits of mantissa, so nothing overflows that did not before.
How      the denoiser or the model runs under autocast; weights of Linear and Conv2d are converted once, not at every call.
Types    parameters stay float32 to whoever asks, and so do inputs and outputs: a pipeline makes the same noise as before.
Cost     the weights a second time in half their size. Without AVX-512 BF16, AMX or a GPU bfloat16 is slower than float32: refused.
In a graph for another runtime everything stays float32; compile(backend='openvino') asks that runtime for bfloat16 instead.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vis_accel.errors import NoEffectError, NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.networks import networks_of
from vis_accel.precision.layers import candidates, float_layer, leaves_python

__all__ = ["Bf16"]


@dataclass(frozen=True, kw_only=True)
class Bf16(Method):
    """The denoiser of a pipeline and its decoder, or a vision model, in bfloat16."""

    name: ClassVar[str] = "bf16"
    family: ClassVar[Family] = "precision"
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("forward", "wraps"),)
    computes_in: ClassVar[torch.dtype] = torch.bfloat16

    vae: bool = option(True, "whether a pipeline's decoder is among what is changed")

    def check_target(self, view: Any) -> None:
        device = next(networks_of(self, view, vae=False)[0].parameters()).device.type
        if device == "cpu" and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            raise NotApplicableError(
                f"{self.name}: this processor has no bfloat16 arithmetic; it would be slower.", hint="int8, or compile"
            )

    def apply(self, target: Any, context: Context) -> Handle:
        """Converts the weights, and runs the networks under autocast."""
        networks = networks_of(self, context.view, vae=self.vae)
        device, dtype = next(networks[0].parameters()).device.type, next(networks[0].parameters()).dtype
        if dtype == torch.bfloat16:
            raise NoEffectError(f"{self.name} would change nothing: the {type(networks[0]).__name__} is in bfloat16 already.")
        with Handle.building(target, str(self)) as handle:
            for network in networks:
                for layer in candidates(network):
                    handle.swap_forward(layer.module, _converted(layer.module))
                handle.swap_forward(network, _under_autocast(network.forward, device))
        return handle


def _converted(module: nn.Linear | nn.Conv2d) -> Callable[[Tensor], Tensor]:
    weight = module.weight.detach().to(torch.bfloat16)
    bias = None if module.bias is None else module.bias.detach().to(torch.bfloat16)

    def forward(x: Tensor) -> Tensor:
        if leaves_python():
            return float_layer(module, x, module.weight)
        return float_layer(module, x.to(torch.bfloat16), weight, bias)

    return forward


def _under_autocast(forward: Callable[..., Any], device: str) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if leaves_python():
            return forward(*args, **kwargs)
        with torch.autocast(device, torch.bfloat16):
            found = forward(*args, **kwargs)
        return tree_map(_widened, found)

    return run


def _widened(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.bfloat16 else value
