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
from vis_accel.method import Context, Exactness, Family, Method, Touch
from vis_accel.precision.layers import candidates, float_layer, leaves_python, network_of

__all__ = ["Bf16"]


@dataclass(frozen=True, kw_only=True)
class Bf16(Method):
    """The denoiser of a pipeline, or a vision model, in bfloat16."""

    name: ClassVar[str] = "bf16"
    family: ClassVar[Family] = "precision"
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("forward", "wraps"),)
    computes_in: ClassVar[torch.dtype] = torch.bfloat16

    def check_target(self, view: Any) -> None:
        device = next(network_of(self, view).parameters()).device.type
        if device == "cpu" and not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
            raise NotApplicableError(
                f"{self.name}: this processor has no bfloat16 arithmetic; it would be slower.", hint="int8, or compile"
            )

    def apply(self, target: Any, context: Context) -> Handle:
        """Converts the weights, and runs the network under autocast."""
        network = network_of(self, context.view)
        layers = list(candidates(network))
        if not layers or next(network.parameters()).dtype == torch.bfloat16:
            reason = "has no Linear or Conv2d" if not layers else "is in bfloat16 already"
            raise NoEffectError(f"{self.name} would change nothing: the {type(network).__name__} {reason}.")
        with Handle.building(target, str(self)) as handle:
            for layer in layers:
                handle.swap_forward(layer.module, _converted(layer.module))
            handle.swap_forward(network, _under_autocast(network.forward, next(network.parameters()).device.type))
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
