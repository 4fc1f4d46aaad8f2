"""Compile: the network is translated to fused kernels; the computation stays the same up to rounding.

Source   Ansel et al. 2024, "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph Compilation",
         ASPLOS 2024 (no arXiv number).
inductor torch.compile: 20 to 60 seconds a graph at the first call of each batch shape; on a CPU it needs a C++ compiler.
openvino OpenVINO's own kernels, CPU only, an extra to install: a few seconds a graph. See openvino.py. Integers and bfloat16 that other
         methods of the recipe ask for are its own then.
Cost     the first call of each batch shape; whether that is ever won back is in the record's first call.
Applied  last of all, so that it sees what every other method changed. A network is recompiled for each new shape (dynamic=False).
Cache    each handle compiles under a code object of its own: several recipes on one model do not push each other's graphs out, and their
         number is not limited by dynamo's limit for one function.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from vis_accel.errors import MissingDependencyError, NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.networks import networks_of
from vis_accel.runtime.openvino import OpenVinoForward, check_installed

__all__ = ["Compile"]


def own_code(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls `forward`, with a code object nobody else has."""

    def run(*args: Any, **options: Any) -> Any:
        return forward(*args, **options)

    return FunctionType(run.__code__.replace(), run.__globals__, run.__name__, run.__defaults__, run.__closure__)


def find_compiler() -> str | None:
    """The C++ compiler Inductor would use for the CPU; None if there is none."""
    return next((found for name in ("g++", "clang++", "c++", "cl") if (found := shutil.which(name))), None)


@dataclass(frozen=True, kw_only=True)
class Compile(Method):
    """Compiles the denoiser of a pipeline and its decoder, or a vision model."""

    name: ClassVar[str] = "compile"
    family: ClassVar[Family] = "compile"
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("forward", "wraps"),)
    needs: ClassVar[frozenset[str]] = frozenset({"static forward"})  # one graph, the same for every image

    backend: Literal["inductor", "openvino"] = option("inductor", "who makes the kernels")
    vae: bool = option(True, "whether a pipeline's decoder is among what is compiled")

    def check_target(self, view: Any) -> None:
        network = networks_of(self, view, vae=False)[0]
        device = next(network.parameters()).device.type
        if self.backend == "openvino":
            check_installed()
            if device != "cpu":
                raise NotApplicableError(f"{self} is for the CPU; the network is on {device}.", hint="compile")
        elif device == "cpu" and find_compiler() is None:
            raise MissingDependencyError(
                "compile needs a C++ compiler on a CPU, and none was found.", hint="apt install g++, or compile(backend='openvino')"
            )

    def apply(self, target: Any, context: Context) -> Handle:
        """Swaps forwards for compiled ones; the first call compiles."""
        with Handle.building(target, str(self)) as handle:
            for network in networks_of(self, context.view, vae=self.vae):
                handle.swap_forward(network, self._compiled(network, context))
        return handle

    def _compiled(self, network: nn.Module, context: Context) -> Callable[..., Any]:
        if self.backend == "inductor":
            return torch.compile(own_code(network.forward), dynamic=False)
        low = any(getattr(method, "computes_in", None) == torch.bfloat16 for method in context.recipe.methods)
        return OpenVinoForward(network, network.forward, "bf16" if low else "f32")
