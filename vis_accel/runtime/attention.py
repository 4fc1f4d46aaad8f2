"""Attention: which kernel computes softmax(Q K^T) V; the result is the same up to rounding.

Paper    flash: Dao et al. 2022, arXiv:2205.14135; efficient and xformers: Rabe and Staats 2021, arXiv:2112.05682.
Backends flash, efficient, cudnn, math: PyTorch's own, by `torch.nn.attention.sdpa_kernel` around each call of the network; which of them a
         device has is PyTorch's business, and asking for one it lacks is an error at once, not a slow road taken in silence.
         xformers: for pipelines on CUDA, by diffusers' processor; it has no kernels for a CPU.
Default  without this method PyTorch picks one for each call: on a CPU flash.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from torch.nn import functional as F

from vis_accel.errors import MissingDependencyError, NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.networks import networks_of

__all__ = ["Attention"]

SDPA = {"flash": "FLASH_ATTENTION", "efficient": "EFFICIENT_ATTENTION", "cudnn": "CUDNN_ATTENTION", "math": "MATH"}


@dataclass(frozen=True, kw_only=True)
class Attention(Method):
    """Attention of the denoiser of a pipeline, or of a vision model, by one kernel."""

    name: ClassVar[str] = "attention"
    family: ClassVar[Family] = "attention"
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("attention kernel", "replaces"),)

    backend: Literal["flash", "efficient", "cudnn", "math", "xformers"] = option("flash", "the kernel")

    def check_target(self, view: Any) -> None:
        network = networks_of(self, view, vae=False)[0]
        device = next(network.parameters()).device.type
        if self.backend == "xformers":
            self._check_xformers(network, device)
        elif not _runs(self.backend, network):
            there = [name for name in SDPA if _runs(name, network)]
            raise NotApplicableError(f"{self}: PyTorch has no such kernel on {device}.", hint=f"there are: {', '.join(there)}")

    def _check_xformers(self, network: nn.Module, device: str) -> None:
        if device != "cuda":
            raise NotApplicableError(f"{self}: xformers has kernels for CUDA alone; the network is on {device}.", hint="attention")
        if not _processors(network):
            raise NotApplicableError(
                f"{self} is for the attention layers of diffusers; {type(network).__name__} has none.", hint="attention"
            )
        try:
            import xformers.ops  # noqa: F401
        except ImportError as error:
            raise MissingDependencyError("attention(backend='xformers') needs xformers.", hint="pip install 'vis-accel[cuda]'") from error

    def apply(self, target: Any, context: Context) -> Handle:
        """Wraps the network's forward, or gives each attention layer another processor."""
        network = networks_of(self, context.view, vae=False)[0]
        with Handle.building(target, str(self)) as handle:
            if self.backend == "xformers":
                from diffusers.models.attention_processor import XFormersAttnProcessor

                for module in _processors(network):
                    handle.swap_attribute(module, "processor", XFormersAttnProcessor())
            else:
                handle.swap_forward(network, _within(network.forward, self.backend))
        return handle


def _within(forward: Callable[..., Any], backend: str) -> Callable[..., Any]:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernel = getattr(SDPBackend, SDPA[backend])

    def run(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(kernel):
            return forward(*args, **kwargs)

    return run


def _processors(network: nn.Module) -> list[nn.Module]:
    """The attention layers of diffusers, which hand their work to a processor."""
    return [module for module in network.modules() if hasattr(module, "processor") and hasattr(module, "set_processor")]


def _runs(backend: str, network: nn.Module) -> bool:
    """Whether PyTorch has this kernel where the network is: tried on a few tokens."""
    like = next(network.parameters())
    tokens = torch.zeros(1, 1, 8, 16, device=like.device, dtype=like.dtype)
    try:
        _within(F.scaled_dot_product_attention, backend)(tokens, tokens, tokens)
    except RuntimeError:
        return False
    return True
