"""Trained parameters that methods need beside the model's own: found by the hash of the model they were trained on, never guessed.

An add-on is one safetensors file. Its header says for which model (sha256 of the weights) and which recipe it was trained, and how.
Those of the bundled models lie in `zoo/addons/MODEL/NAME.safetensors` (the folder of a
model is sealed by its card); a user's own is named by its path.

    found = find("early-exit", model, name=None)        the one that ships for this model
    found.tensors, found.facts
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.errors import DataError, NotApplicableError, UnknownNameError
from vis_accel.files import write_atomic
from vis_accel.handle import Handle
from vis_accel.identity import identity

__all__ = ["Addon", "differences", "find", "identity", "save", "shipped", "swap_parameters"]

_STEPS, _HALVES, _SCALE = "#steps", "#halves", "#scale"  # ends of the names of a difference's parts: steps of 8 bits or 4, and their sizes
_FOLDER = Path(__file__).parent / "zoo" / "addons"


@dataclass(frozen=True)
class Addon:
    """Trained parameters.

    Attributes:
        name: of the file, without its ending.
        tensors: by name.
        facts: "method" that wants it, "model_sha256", and what else the training wrote: recipe, scores, seconds.
    """

    name: str
    tensors: dict[str, Tensor]
    facts: dict[str, Any]


def shipped(method: str | None = None) -> dict[str, Path]:
    """The add-ons in this package, by name; with `method`, those it wants."""
    found = {path.stem: path for path in sorted(_FOLDER.glob("*/*.safetensors"))}
    return found if method is None else {name: path for name, path in found.items() if _facts(path).get("method") == method}


def find(method: str, model: nn.Module, name: str | None = None, *, how: str | None = None) -> Addon:
    """The add-on that `method` needs on `model`.

    Args:
        method: the name of the method.
        model: what it is put on.
        name: of an add-on that ships, or the path of a file; None: the one that ships for this model.
        how: to get one, for the message that none ships.

    Raises:
        NotApplicableError: none was trained for this model (how to get one is in the hint), or the one named is another model's.
        UnknownNameError: neither a name nor a file.
        DataError: the file is broken.
    """
    own, there = identity(model), shipped(method)
    if name is None:
        fitting = [path for path in there.values() if _facts(path).get("model_sha256") == own]
        if not fitting:
            raise NotApplicableError(
                f"{method} needs trained parameters, and none ship for this {type(model).__name__}.",
                hint=how or f"train them: python token_pruning/train.py {method} --help; then {method}(weights='FILE.safetensors')",
            )
        return _read(fitting[0])
    path = there.get(name) or Path(name).expanduser()
    if not path.is_file():
        raise UnknownNameError.of(f"set of parameters for {method}, and no file,", name, there)
    found = _read(path)
    if found.facts.get("method") != method:
        raise NotApplicableError(f"{name} holds parameters of {found.facts.get('method')}, not of {method}.")
    if found.facts.get("model_sha256") != own:
        raise NotApplicableError(f"{name} was trained on another model than this {type(model).__name__}: their weights differ.")
    return found


def save(path: Path, tensors: Mapping[str, Tensor], *, method: str, model: nn.Module, facts: Mapping[str, Any]) -> None:
    """Writes an add-on for `method` on `model` (as it is before the method is put on), whole or not at all."""
    from safetensors.torch import save as serialise

    whole = dict(facts) | {"method": method, "model_sha256": identity(model)}
    header = {"vis_accel": json.dumps(whole)}
    write_atomic(path, serialise({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, metadata=header))


def differences(base: nn.Module, tuned: Mapping[str, Tensor], prefix: str = "", *, bits: int = 8) -> dict[str, Tensor]:
    """`tuned` weights as what they add to `base`: matrices and kernels in steps with a size for each row, the rest as it is in bfloat16.

    In 8 bits half the size of bfloat16, in 4 a quarter; the rounding is of the difference, not of the weight. `swap_parameters` reads both.
    """
    found, own, most = {}, base.state_dict(), 2 ** (bits - 1) - 1
    for name, value in tuned.items():
        change = value.detach().float().cpu() - own[name].float().cpu()
        if value.ndim < 2 or not value.is_floating_point():
            found[prefix + name] = value.to(torch.bfloat16) if value.is_floating_point() else value
            continue
        rows = change.flatten(1)
        scale = rows.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / most
        steps = (rows / scale).round().to(torch.int8)
        if bits == 4:
            found[f"{prefix}{name}{_HALVES}"] = _packed(steps)
        else:
            found[f"{prefix}{name}{_STEPS}"] = steps.reshape(change.shape)
        found[f"{prefix}{name}{_SCALE}"] = scale.flatten()
    return found


def _packed(steps: Tensor) -> Tensor:
    """Steps of -7 to 7 (rows x n), two in a byte (rows x n/2, rounded up)."""
    codes = nn.functional.pad((steps + 8).to(torch.uint8), (0, steps.shape[1] % 2), value=8)
    return codes[:, ::2] * 16 + codes[:, 1::2]


def _unpacked(halves: Tensor, shape: torch.Size) -> Tensor:
    """The steps that `_packed` packed, in the shape of their weight."""
    codes = torch.stack((halves // 16, halves % 16), dim=-1).flatten(1)[:, : shape[1:].numel()]
    return (codes.to(torch.int8) - 8).reshape(shape)


def swap_parameters(handle: Handle, model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Puts `tensors` in the place of the model's parameters and buffers of these names, in the dtype and on the device those have.

    Raises:
        DataError: a name the model does not have, or another shape.
    """
    for name, tensor in _whole(model, tensors).items():
        path, _, leaf = name.rpartition(".")
        try:
            owner = model.get_submodule(path)
        except AttributeError as error:
            raise DataError(f"The model has no {name}.") from error
        table = owner._parameters if leaf in owner._parameters else owner._buffers
        old = table.get(leaf)
        if old is None or old.shape != tensor.shape:
            raise DataError(f"{name} is {tuple(tensor.shape)} here and {None if old is None else tuple(old.shape)} in the model.")
        fresh = tensor.to(old.device, old.dtype)
        handle.swap_item(table, leaf, nn.Parameter(fresh, old.requires_grad) if isinstance(old, nn.Parameter) else fresh)


def _whole(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` with those that `differences` wrote added to the model's own."""
    found = {name: tensor for name, tensor in tensors.items() if not name.endswith((_STEPS, _HALVES, _SCALE))}
    for name, steps in tensors.items():
        own, mark, form = name.rpartition("#")
        if f"{mark}{form}" not in (_STEPS, _HALVES):
            continue
        scale = tensors.get(own + _SCALE)
        try:
            base = model.get_parameter(own)
        except AttributeError as error:
            raise DataError(f"The model has no {own}.") from error
        rows = base.shape[0] if base.ndim else 0
        fits = steps.shape == ((rows, -(-base.shape[1:].numel() // 2)) if mark + form == _HALVES else base.shape)
        if scale is None or not fits or scale.shape != (rows,):
            raise DataError(f"The difference of {own} does not fit the model's {tuple(base.shape)}.")
        whole = _unpacked(steps, base.shape) if mark + form == _HALVES else steps
        found[own] = base.detach().float().cpu() + whole.float() * scale.reshape(-1, *[1] * (base.ndim - 1))
    return found


def _read(path: Path) -> Addon:
    from safetensors.torch import load_file

    facts = _facts(path)
    try:
        return Addon(path.stem, load_file(path), facts)
    except Exception as error:  # whatever the parser says of a broken file
        raise DataError(f"{path} is no add-on: {error}") from error


def _facts(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        facts = json.loads(header["vis_accel"])
    except Exception as error:
        raise DataError(f"{path} is no add-on: {error}") from error
    return dict(facts)
