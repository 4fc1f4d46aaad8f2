"""Compile: the network is translated to fused kernels; the computation stays the same up to rounding.

Source   Ansel et al. 2024, "PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph Compilation",
         ASPLOS 2024 (no arXiv number).
inductor torch.compile: 20 to 60 seconds a graph at the first call of each batch shape; on a CPU it needs a C++ compiler.
openvino OpenVINO's own kernels, CPU only, an extra to install: a few seconds a graph. See openvino.py. Integers and bfloat16 that other
         methods of the recipe ask for are its own then.
regional blocks that repeat are compiled one by one instead of the whole network, blocks of one kind sharing a graph: the first call takes a
         fraction of the time, and what lies between the blocks stays as it is (Inductor only).
Cost     the first call of each batch shape; whether that is ever won back is in the record's first call.
Applied  last of all, so that it sees what every other method changed. A network is recompiled for each new shape (dynamic=False).
Cache    each handle compiles under a code object of its own: several recipes on one model do not push each other's graphs out, and their
         number is not limited by dynamo's limit for one function.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from vis_accel.errors import MissingDependencyError, NoEffectError, NotApplicableError, UsageError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.networks import networks_of
from vis_accel.runtime.openvino import OpenVinoForward, check_installed

__all__ = ["Compile"]

FEWEST_PARAMETERS = 4  # tensors: fewer make a layer, not a block


def own_code(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A function that calls `forward`, with a code object nobody else has."""

    def run(*args: Any, **options: Any) -> Any:
        return forward(*args, **options)

    return FunctionType(run.__code__.replace(), run.__globals__, run.__name__, run.__defaults__, run.__closure__)


def find_compiler() -> str | None:
    """The C++ compiler Inductor would use for the CPU; None if there is none."""
    return next((found for name in ("g++", "clang++", "c++", "cl") if (found := shutil.which(name))), None)


def repeated(network: nn.Module) -> dict[tuple[Any, ...], list[nn.Module]]:
    """Blocks that occur more than once, by what makes their graphs equal: class and shapes of the parameters."""
    kinds: dict[tuple[Any, ...], list[nn.Module]] = {}
    for holder in network.modules():
        if isinstance(holder, (nn.ModuleList, nn.Sequential)):
            for block in holder:
                shapes = tuple((name, tuple(value.shape)) for name, value in block.named_parameters())
                if len(shapes) >= FEWEST_PARAMETERS:
                    kinds.setdefault((type(block), shapes), []).append(block)
    found = {kind: blocks for kind, blocks in kinds.items() if len(blocks) > 1}
    for kind, blocks in list(found.items()):  # a block within a block that repeats is part of its graph
        outer = [other for others in found.values() for other in others if other not in blocks]
        within = {module for other in outer for module in other.modules()}
        found[kind] = [block for block in blocks if block not in within]
    return {kind: blocks for kind, blocks in found.items() if len(blocks) > 1}


def compile_regions(handle: Handle, network: nn.Module) -> None:
    """Compiles the repeated blocks of a network, those of a kind as one function; a block some method changed, by itself."""
    for blocks in repeated(network).values():

        def call(block: nn.Module, *args: Any, **options: Any) -> Any:
            return type(block).forward(block, *args, **options)

        shared = torch.compile(own_code(call), dynamic=False)
        for block in blocks:
            own = "forward" in vars(block)
            handle.swap_forward(block, torch.compile(own_code(block.forward), dynamic=False) if own else partial(shared, block))


@dataclass(frozen=True, kw_only=True)
class Compile(Method):
    """Compiles the denoiser of a pipeline and its decoder, or a vision model."""

    name: ClassVar[str] = "compile"
    family: ClassVar[Family] = "compile"
    exactness: ClassVar[Exactness] = "equivalent"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("forward", "wraps"),)
    needs: ClassVar[frozenset[str]] = frozenset({"static forward"})  # one graph, the same for every image

    backend: Literal["inductor", "openvino"] = option("inductor", "who makes the kernels")
    regional: bool = option(False, "whether the blocks that repeat are compiled, each kind once, instead of the whole network")
    vae: bool = option(True, "whether a pipeline's decoder is among what is compiled")

    def check_target(self, view: Any) -> None:
        network = networks_of(self, view, vae=False)[0]
        device = next(network.parameters()).device.type
        if self.regional and self.backend != "inductor":
            raise UsageError(f"{self}: OpenVINO takes a network as a whole.", hint="compile(regional=True)")
        if self.regional and not repeated(network):
            raise NoEffectError(f"{self}: no blocks repeat in {type(network).__name__}.", hint="compile")
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
                if self.regional and repeated(network):  # a decoder without such blocks is compiled whole
                    compile_regions(handle, network)
                else:
                    handle.swap_forward(network, self._compiled(network, context))
        return handle

    def _compiled(self, network: nn.Module, context: Context) -> Callable[..., Any]:
        if self.backend == "inductor":
            return torch.compile(own_code(network.forward), dynamic=False)
        low = any(getattr(method, "computes_in", None) == torch.bfloat16 for method in context.recipe.methods)
        return OpenVinoForward(network, network.forward, "bf16" if low else "f32")
