"""A network's forward run by OpenVINO: traced once for each shape of its inputs, then compiled for the CPU.

The graph holds what the network does at that moment: methods that were put on it before, rounding included (as FakeQuantize, which
OpenVINO turns into integer kernels of its own). Arguments that are no tensors become part of it. What Python decides from values inside
the network is decided once, at the trace; so each new graph's first answer is compared with the network's own.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from vis_accel.errors import MissingDependencyError, RunError

__all__ = ["OpenVinoForward", "check_installed"]

APART = {"f32": 0.01, "bf16": 0.1}  # of the root mean square of the network's own answer: rounding moves it by less
ROUNDED = 0.25  # and if layers are rounded to integers, whose steps fall on either side


def check_installed() -> None:
    """Raises MissingDependencyError without OpenVINO."""
    try:
        import openvino  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError("compile(backend='openvino') needs OpenVINO.", hint="pip install 'vis-accel[openvino]'") from error


class OpenVinoForward:
    """Stands in for a network's `forward`.

    Args:
        network: whose call is answered.
        forward: what it does now.
        precision: what OpenVINO computes in, apart from integers: "f32" or "bf16".
    """

    def __init__(self, network: nn.Module, forward: Callable[..., Any], precision: str) -> None:
        self.network, self.forward, self.precision = network, forward, precision
        self._graphs: dict[Any, _Graph] = {}

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, form = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        shape = tuple((tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
        key = (form, shape, torch.get_num_threads())
        if key not in self._graphs:
            graph = _Graph(self.network, self.forward, leaves, form, self.precision)
            self._compare(graph.run(tensors), self.forward(*args, **kwargs))
            self._graphs[key] = graph
        return self._graphs[key].run(tensors)

    def _compare(self, found: Any, wanted: Any) -> None:
        """Raises RunError if the graph computes something else than the network."""
        rounded = any(hasattr(vars(module).get("forward"), "bits") for module in self.network.modules())
        limit = ROUNDED if rounded else APART[self.precision]
        pairs = zip(tree_flatten(found)[0], tree_flatten(wanted)[0], strict=True)
        apart = max(float((a - b).float().pow(2).mean().sqrt() / b.float().pow(2).mean().sqrt()) for a, b in pairs if isinstance(b, Tensor))
        if not apart <= limit:
            raise RunError(
                f"OpenVINO computes something else than this {type(self.network).__name__}: its answer is {apart:.1%} away.",
                hint="compile, with its own backend",
            )


class _Graph:
    """One network for one shape of its inputs, compiled."""

    def __init__(self, network: nn.Module, forward: Callable[..., Any], leaves: list[Any], form: TreeSpec, precision: str) -> None:
        import openvino

        traced = _Flat(network, forward, leaves, form)
        tensors = tuple(leaf for leaf in leaves if isinstance(leaf, Tensor))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about checks of shapes that are fixed here
            try:
                model = openvino.convert_model(traced, example_input=tensors, input=[list(tensor.shape) for tensor in tensors])
            except Exception as error:  # whatever the converter raises: the reason is in its first line
                reason = str(error).strip().splitlines()[0][:300]
                raise RunError(f"OpenVINO cannot take this network: {reason}", hint="compile, with its own backend") from error
        options = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads(), "PERFORMANCE_HINT": "LATENCY"}
        self._run = openvino.compile_model(model, "CPU", options)
        self._out, self._out_leaves = traced.out, traced.out_leaves

    def nodes(self) -> list[Any]:
        """The operations that are executed, with their precisions, as OpenVINO reports them."""
        return list(self._run.get_runtime_model().get_ops())

    def run(self, tensors: list[Tensor]) -> Any:
        """The network's answer to these inputs."""
        found = self._run([tensor.contiguous().numpy() for tensor in tensors])
        answers = iter(torch.from_numpy(found[index]) for index in range(len(self._run.outputs)))
        return tree_unflatten([next(answers) if leaf is _TENSOR else leaf for leaf in self._out_leaves], self._out)


_TENSOR = object()  # stands for the tensors of an answer


class _Flat(nn.Module):
    """The network as a function of tensors alone, for the tracer; notes the form of the answer."""

    def __init__(self, network: nn.Module, forward: Callable[..., Any], leaves: list[Any], form: TreeSpec) -> None:
        super().__init__()
        self.network = network  # the tracer wants to know whose parameters it meets
        self._call: tuple[Callable[..., Any], list[Any], TreeSpec] = (forward, leaves, form)
        self.out: Any = None
        self.out_leaves: list[Any] = []

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        forward, leaves, form = self._call
        rest = iter(tensors)
        args, kwargs = tree_unflatten([next(rest) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form)
        found, self.out = tree_flatten(forward(*args, **kwargs))
        self.out_leaves = [_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in found]
        return tuple(leaf for leaf in found if isinstance(leaf, Tensor))
