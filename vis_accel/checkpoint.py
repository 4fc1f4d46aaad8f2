"""The file a training goes on from: networks, optimiser and facts in one safetensors file, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vis_accel.errors import RunError
from vis_accel.files import write_atomic

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["read_checkpoint", "write_checkpoint"]

_FACTS = "training"


def write_checkpoint(path: Path, facts: Mapping[str, Any], networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """Writes networks by name, the optimiser's state and `facts` (plain values)."""
    import torch
    from safetensors.torch import save

    tensors = {f"{prefix}.{name}": tensor for prefix, network in networks.items() for name, tensor in network.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items() if value is not None}
    whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
    write_atomic(path, save(whole, {_FACTS: json.dumps(dict(facts))}))


def read_checkpoint(path: Path) -> tuple[dict[str, Any], Checkpoint]:
    """The facts of a checkpoint, and the rest of it, to be put back once the facts have been found to fit.

    Raises:
        RunError: a file that this did not write, or that was cut off.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts: dict[str, Any] = json.loads(file.metadata()[_FACTS])
            return facts, Checkpoint({name: file.get_tensor(name) for name in file.keys()})
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path} is not a checkpoint of this trainer: {error}") from error


class Checkpoint:
    """What was read, by the names it was written under."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self.tensors = tensors

    def restore(self, networks: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
        """Puts everything back, each tensor laid out in memory as its parameter is."""
        import torch

        for prefix, network in networks.items():
            network.load_state_dict({name: self.tensors[f"{prefix}.{name}"] for name in network.state_dict()})
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in self.tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                state.setdefault(int(index), {})[key] = tensor
        parameters: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]
        for place, values in state.items():
            for key, value in values.items():
                if value.shape == parameters[place].shape and value.ndim:  # as the parameter lies in memory: fused kernels look no further
                    values[key] = torch.empty_like(parameters[place], dtype=value.dtype, device="cpu").copy_(value)
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
