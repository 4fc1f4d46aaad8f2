"""Rounded layers in a file: whole-number weights, scales and ranges of one method on the networks of one model.

File     safetensors; its header is one strict JSON object: format, method, recipe, the hashes of the float networks, the bits of each
         layer. Nothing in it is run.
Whose    a file is used on networks whose weights have the same hashes, and on no others.
Cache    what a calibration found is kept in the user's folder, under a key that holds whatever it depends on: method and recipe, weights,
         what it was run on, processor, versions, and this package's own arithmetic. `fresh=True` calibrates anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.errors import DataError, NotApplicableError
from vis_accel.files import user_folder, write_atomic
from vis_accel.handle import Handle
from vis_accel.identity import identity
from vis_accel.machine import machine, versions
from vis_accel.method import Context, Method
from vis_accel.precision import kernels
from vis_accel.precision.layers import part_of
from vis_accel.precision.rounded import RoundedLayer, RoundedPart
from vis_accel.recipe import Recipe
from vis_accel.strict_json import dumps, loads, read_form, to_form

__all__ = ["FILE", "Facts", "Saved", "install", "keep", "kept", "of_networks", "read", "write"]

FORMAT = 1
FILE = "quantized.safetensors"
_PARTS = ("whole", "scales", "scale_of", "zero_of")


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """Of one layer.

    Attributes:
        bits: of weights and activations.
        starts: first channel of each group of inputs, and the end of the last.
    """

    bits: tuple[int, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Of a file.

    Attributes:
        format: of the file.
        method: whose layers they are, as a recipe's text.
        recipe: the whole recipe it was calibrated in.
        networks: hash of each float network.
        real: whether the layers run on integer kernels; else they are simulated.
        told: what the method reported.
        layers: by "INDEX.NAME", the index of the network and the layer's name in it.
    """

    format: int
    method: str
    recipe: str
    networks: tuple[str, ...]
    real: bool
    told: str
    layers: dict[str, LayerFacts]


@dataclass(frozen=True)
class Saved:
    """A file's content, and what it is called in messages."""

    facts: Facts
    tensors: Mapping[str, Tensor]
    name: str


def of_networks(method: Method, recipe: Recipe, networks: Sequence[nn.Module], *, real: bool, told: str) -> Saved:
    """What is on `networks` now. Their parameters are the float ones still."""
    layers, tensors = dict[str, LayerFacts](), dict[str, Tensor]()
    for index, network in enumerate(networks):
        for name, module in network.named_modules():
            layer = vars(module).get("forward")
            if not isinstance(layer, RoundedLayer):
                continue
            key = f"{index}.{name}"
            layers[key] = LayerFacts(bits=tuple(layer.bits), starts=tuple(layer.starts))
            for number, part in enumerate(layer.parts):
                tensors |= {f"{key}#{number}.{field}": getattr(part, field) for field in _PARTS}
    hashes = tuple(map(identity, networks))
    facts = Facts(format=FORMAT, method=str(method), recipe=str(recipe), networks=hashes, real=real, told=told, layers=layers)
    return Saved(facts, tensors, "memory")


def write(found: Saved, path: Path) -> None:
    """Writes the file, whole or not at all."""
    from safetensors.torch import save

    header = {"vis_accel": dumps(to_form(found.facts, "the quantized layers"))}
    write_atomic(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in found.tensors.items()}, metadata=header))


def read(path: Path) -> Saved:
    """Reads a file.

    Raises:
        DataError: no such file, another format, or one that is broken or lacks a tensor; the message says which.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise DataError(f"There is no {path}.", hint="vis-accel quantize --output DIR writes such a folder")
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("vis_accel")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is no file of quantized layers: {error}") from error
    if header is None:
        raise DataError(f"{path} is no file of quantized layers: it has no header of this package.")
    form = loads(header, str(path), DataError)
    version = form.get("format") if isinstance(form, Mapping) else None
    if version != FORMAT:
        raise DataError(f"{path} is of format {version}; this version of vis-accel reads {FORMAT}.", hint="quantize the model again")
    facts: Facts = read_form(Facts, form, str(path), DataError)
    for key, layer in facts.layers.items():
        for number in range(len(layer.starts) - 1):
            missing = [field for field in _PARTS if f"{key}#{number}.{field}" not in tensors]
            if missing:
                raise DataError(f"{path} lacks {', '.join(missing)} of the layer {key.partition('.')[2]}.", hint="quantize the model again")
    return Saved(facts, tensors, str(path))


def install(handle: Handle, found: Saved, networks: Sequence[nn.Module], step: Tensor, *, real: bool) -> list[nn.Module]:
    """Puts the layers of a file on the networks they were made for; returns the modules.

    Raises:
        NotApplicableError: other networks, or layers of another kind of arithmetic than is asked for.
        DataError: a layer these networks do not have, or of another shape.
    """
    if found.facts.networks != tuple(map(identity, networks)):
        raise NotApplicableError(f"{found.name} was made for other weights than these.", hint="quantize this model")
    if found.facts.real != real:
        kinds = {True: "integer kernels", False: "simulated rounding"}
        raise NotApplicableError(f"{found.name} is for {kinds[found.facts.real]}, and {kinds[real]} was asked for.")
    modules = []
    for key, layer in found.facts.layers.items():
        index, _, name = key.partition(".")
        try:
            module: Any = networks[int(index)].get_submodule(name)
        except (AttributeError, IndexError, ValueError) as error:
            raise DataError(f"{found.name} has a layer {name} that the model lacks.") from error
        parts = [_part(handle, found, f"{key}#{i}.", module, layer, i, step, real) for i in range(len(layer.starts) - 1)]
        handle.swap_forward(module, RoundedLayer(parts, layer.starts, (layer.bits[0], layer.bits[1])))
        modules.append(module)
    return modules


def _part(handle: Handle, found: Saved, start: str, module: Any, layer: LayerFacts, number: int, step: Tensor, real: bool) -> RoundedPart:
    whole, scales, scale_of, zero_of = (found.tensors[start + field] for field in _PARTS)
    twin = module if len(layer.starts) == 2 else part_of(module, layer.starts[number], layer.starts[number + 1])
    if whole.dtype != torch.int8 or whole.shape != twin.weight.shape or scales.shape != whole.shape[:1] or scale_of.shape != zero_of.shape:
        raise DataError(f"{found.name}: {start.rstrip('.')} is {tuple(whole.shape)}, and the model's weight is {tuple(twin.weight.shape)}.")
    packed = kernels.pack(twin, whole, scales) if real else None
    if packed is not None:
        handle.at_end(packed.free)
    return RoundedPart(twin, whole, scales, scale_of, zero_of, layer.bits[1], step, packed)


def kept(method: Method, context: Context, networks: Sequence[nn.Module]) -> Saved | None:
    """What an earlier calibration of the same found; None: there was none, or its file is broken and will be written again."""
    place = _place(method, context, networks)
    if place is None or not place.is_file():
        return None
    try:
        return read(place)
    except DataError:
        return None


def keep(found: Saved, method: Method, context: Context, networks: Sequence[nn.Module]) -> None:
    """Keeps what a calibration found. A folder that cannot be written is no reason to lose it: it is used all the same."""
    from vis_accel.errors import OutputError

    place = _place(method, context, networks)
    if place is not None:
        try:
            write(found, place)
        except OutputError:
            return


def _place(method: Method, context: Context, networks: Sequence[nn.Module]) -> Path | None:
    """The file of such a calibration; None where it is not known what it runs on."""
    told = getattr(context.exercise, "told", None)
    if told is None:
        return None
    facts = {"method": str(method), "recipe": str(context.recipe), "run": told(), "networks": list(map(identity, networks))}
    facts |= {"machine": machine()["processor"], "versions": versions(), "arithmetic": _arithmetic(), "threads": torch.get_num_threads()}
    key = hashlib.sha256(dumps(facts, sort_keys=True).encode()).hexdigest()
    return user_folder() / "calibrations" / f"{method.name}-{key[:24]}.safetensors"


@cache
def _arithmetic() -> str:
    """Of the files that say how layers are rounded: what older ones found is not used."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()
