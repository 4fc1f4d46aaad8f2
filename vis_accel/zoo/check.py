"""Whether weights are whole: every tensor a network wants is there, of its shape and kind, and nothing else; all of it finite.

Order    1. headers: names, shapes and dtypes of the safetensors files, without the data;
         2. the network, built from its configuration on the meta device, under a budget: a configuration that asks for much more than
            the files hold is given up while it is being built;
         3. the two compared, tensor by tensor;
         4. after loading: nothing left on the meta device, nothing infinite.
Limits   A finite number changed to another is only seen where there are hashes (`bundled.verify`). Of components built by transformers only
         headers and finiteness are checked; of pickled weights, allowed on request, only step 4.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vis_accel.errors import ModelError, closest, either, shown
from vis_accel.zoo.folder import Component, pickled, read_json, refuse_pickle

__all__ = ["Header", "build_empty", "compare", "finite", "read_headers", "weight_files"]

_FLOATS = ("F64", "F32", "F16", "BF16")
_EXACT = {torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
_SLACK_BYTES = 64 * 2**20  # position tables and the like, which files need not hold
_BLOCK = 2**22  # numbers looked at together


class Header(NamedTuple):
    """What a file says of a tensor."""

    file: Path
    shape: tuple[int, ...]
    dtype: str


class _TooLarge(Exception):
    """A network that outgrew its budget while being built; never leaves this module."""


def weight_files(folder: Path, stem: str, *, allow_pickle: bool = False) -> list[Path]:
    """The safetensors files a loader would read from a component's folder; empty for pickled weights that are allowed.

    Args:
        folder: of the component.
        stem: what its loader calls weights: "diffusion_pytorch_model" or "model".
        allow_pickle: whether pickled weights will do.

    Raises:
        ModelError: no weights, pickled weights, both a whole file and shards, or an index of shards that leads elsewhere.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.exists() and index.exists():
        raise ModelError(f"{folder} has both {single.name} and {index.name}.", hint="delete the one that is not wanted")
    if single.exists():
        return [single]
    if index.exists():
        return _shards(index)
    if files := pickled(folder):
        if allow_pickle:
            return []
        raise refuse_pickle(files, single.name)
    others = either(sorted(path.name for path in folder.glob("*.safetensors"))[:3])
    raise ModelError(f"{folder} has no weights: {single.name} is missing.", hint=f"rename {others}?" if others else None)


def _shards(index: Path) -> list[Path]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise ModelError(f"{index} has no weight_map.")
    for name in mapping.values():
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*\.safetensors", name):
            raise ModelError(f"{index} leads to {shown(name)}, which is no safetensors file beside it.")
    files = [index.parent / name for name in sorted(set(mapping.values()))]
    for file in files:
        if not file.exists():
            raise ModelError(f"{file} is missing; {index.name} lists it.")
    headers = read_headers(files)
    for tensor in sorted({*mapping, *headers}):
        if tensor not in headers or mapping.get(tensor) != headers[tensor].file.name:
            there = f"it is in {headers[tensor].file.name}" if tensor in headers else "no shard holds it"
            raise ModelError(f"{index} puts the tensor {shown(tensor)} into {shown(mapping.get(tensor))}, but {there}.")
    return files


def read_headers(files: list[Path]) -> dict[str, Header]:
    """Names, shapes and dtypes of all tensors in safetensors files.

    Raises:
        ModelError: a file that is cut off or is not safetensors, or a tensor that two files hold.
    """
    from safetensors import SafetensorError, safe_open

    headers: dict[str, Header] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():
                    part = opened.get_slice(name)
                    if name in headers:
                        raise ModelError(f"The tensor {shown(name)} is in {headers[name].file} and again in {file}.")
                    headers[name] = Header(file, tuple(part.get_shape()), part.get_dtype())
        except (SafetensorError, OSError, ValueError) as error:
            raise ModelError(f"{file} is not a whole safetensors file: {error}", hint="download or copy it again") from error
    return headers


def build_empty(build: Callable[[], nn.Module], size: int, tensors: int, source: Path) -> nn.Module:
    """Builds a network on the meta device, within a budget.

    Args:
        build: builds it.
        size: bytes of its weight files; counted in float32, the network may have four times as much.
        tensors: number of tensors in them; the network may have four times as many.
        source: the configuration, for messages.

    Raises:
        ModelError: a configuration that describes a larger network, or none.
    """
    try:
        with _budget(size, tensors), torch.device("meta"):
            return build()
    except _TooLarge as error:
        raise ModelError(f"{source} describes a network that does not belong to its weights: {error}.") from None
    except Exception as error:  # whatever a foreign constructor makes of hostile values
        raise ModelError(f"{source} describes no network: {type(error).__name__}: {shown(str(error), 300)}") from error


@contextmanager
def _budget(size: int, tensors: int) -> Iterator[None]:
    """Counts what this thread registers, by PyTorch's own hooks, and raises _TooLarge."""
    thread = threading.get_ident()
    counts = {"bytes": 0, "tensors": 0}
    most_bytes, most_tensors = 4 * size + _SLACK_BYTES, 4 * tensors + 64

    def count(_module: nn.Module, name: str, tensor: Tensor | None) -> None:
        if tensor is None or threading.get_ident() != thread:
            return
        counts["bytes"] += 4 * tensor.numel()
        counts["tensors"] += 1
        if counts["bytes"] > most_bytes:
            raise _TooLarge(f"at its tensor {shown(name)} it has {counts['bytes']:,} bytes in float32, and the files have {size:,}")
        if counts["tensors"] > most_tensors:
            raise _TooLarge(f"it has more than {most_tensors:,} tensors, and the files have {tensors:,}")

    handles = [
        nn.modules.module.register_module_parameter_registration_hook(count),
        nn.modules.module.register_module_buffer_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def compare(network: nn.Module, headers: Mapping[str, Header]) -> dict[str, Header]:
    """Holds the headers against the state of the (empty) network; returns them under the network's own names.

    Raises:
        ModelError: a tensor that is missing, not wanted, or of another shape or kind.
    """
    have: dict[str, Any] = dict(headers)
    renames = getattr(network, "_fix_state_dict_keys_on_load", None)
    if renames is not None:  # diffusers' own renaming of attention blocks saved before 2023; it moves values and looks at names only
        renames(have)
    want = network.state_dict()
    ignored = tuple(getattr(network, "_keys_to_ignore_on_load_unexpected", None) or ())
    extra = [name for name in have if name not in want and not any(re.search(pattern, name) for pattern in ignored)]
    where = either(sorted({str(header.file) for header in headers.values()})[:2]) or "the weights"
    for name in want:
        if name not in have:
            near = "".join(f" It has {shown(other)}, which is not wanted." for other in closest(name, extra, 1))
            message = f"The tensor {shown(name)} of {type(network).__name__} is missing in {where}.{near}"
            raise ModelError(message, hint="download or copy the model again")
    for name in extra:
        raise ModelError(f"{have[name].file} has a tensor {shown(name)}, which {type(network).__name__} has no place for.")
    for name, tensor in want.items():
        header = have[name]
        if header.shape != tuple(tensor.shape):
            raise ModelError(f"{header.file}: the tensor {shown(name)} has the shape {header.shape}; wanted is {tuple(tensor.shape)}.")
        allowed = _FLOATS if tensor.is_floating_point() else (_EXACT.get(tensor.dtype, str(tensor.dtype)),)
        if header.dtype not in allowed:
            raise ModelError(f"{header.file}: the tensor {shown(name)} has the dtype {header.dtype}; wanted is {either(allowed)}.")
    return {name: have[name] for name in want}


def component(part: Component, kind: type[Any], *, allow_pickle: bool) -> dict[str, Header]:
    """Steps 1 to 3 for a network that diffusers builds; returns its headers, empty for pickled weights.

    Args:
        part: the component.
        kind: its class, a diffusers ModelMixin.
        allow_pickle: whether pickled weights will do.
    """
    source = part.folder / "config.json"
    config = read_json(source)
    if config.get("quantization_config"):
        hint = "load the original, and quantize by a recipe"
        raise ModelError(f"{source}: these weights are quantized, and only plain ones can be checked.", hint=hint)
    files = weight_files(part.folder, "diffusion_pytorch_model", allow_pickle=allow_pickle)
    headers = read_headers(files)
    size = sum(file.stat().st_size for file in files or pickled(part.folder))
    network = build_empty(lambda: kind.from_config(config), size, len(headers) or 10_000, source)
    return compare(network, headers) if files else {}


def finite(network: nn.Module, source: Path, headers: Mapping[str, Header]) -> None:
    """Step 4: refuses a loaded network that has tensors without data, or numbers that are not finite.

    Args:
        network: loaded.
        source: its folder or file, for tensors `headers` does not know.
        headers: as `compare` returns them.
    """
    tensors = [*network.named_parameters(), *network.named_buffers()]
    for name, tensor in tensors:
        if tensor.is_meta:
            raise ModelError(f"{source}: the tensor {shown(name)} is missing; it got no data.", hint="download or copy the model again")
    for name, tensor in network.state_dict().items():
        if not tensor.is_floating_point():
            continue
        if not all(bool(block.isfinite().all()) for block in tensor.detach().reshape(-1).split(_BLOCK)):
            file = headers[name].file if name in headers else source
            raise ModelError(
                f"{file}: the tensor {shown(name)} holds NaN or infinity (read as {str(tensor.dtype).removeprefix('torch.')}).",
                hint="the weights are damaged, or too large for this dtype",
            )
