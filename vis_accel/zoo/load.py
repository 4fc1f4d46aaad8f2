"""`load`: a name, a folder or a place on the hub -> a pipeline or a network that is whole and ran no code to get here.

Light to import: what it needs is fetched when a model is loaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vis_accel.errors import ModelError, UnknownNameError, UsageError, closest, either, shown
from vis_accel.zoo import bundled
from vis_accel.zoo.quantized import is_quantized, opened_as

if TYPE_CHECKING:
    import torch

__all__ = ["load"]

_HUB = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_FORMS = "a folder that pipeline.save_pretrained or vis-accel finetune wrote, owner/name on the hub, or timm/NAME"


def load(
    name: str | os.PathLike[str],
    *,
    allow_pickle: bool = False,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    revision: str | None = None,
    random_weights: bool = False,
) -> Any:
    """Loads a model, whole and in evaluation mode.

    Args:
        name: of a bundled model (`MODELS`), a folder of diffusers' or timm's layout, `owner/name` on the Hugging Face hub, or
            `timm/NAME`, in that order.
        allow_pickle: reads weights that are only there as pickles, which can run any program the file holds. Nothing else unpickles.
        dtype: of the weights, a torch dtype or its name; None: float32, whatever the files hold.
        device: where to; None: the CPU.
        revision: branch, tag or commit on the hub.
        random_weights: for `timm/NAME`: the architecture without its weights, the same ones each time; for rows of speed.

    Returns:
        A stock `DiffusionPipeline`, or an `nn.Module` for timm and the bundled classifier.

    Raises:
        UnknownNameError: nothing has that name; the closest bundled ones are in the hint.
        UsageError: an argument that does not fit the name, an unknown dtype, a device that is not there.
        ModelError: a model that is incomplete, damaged or unsafe, or cannot be fetched.
        MissingDependencyError: the pipeline needs transformers.
    """
    name = os.fspath(name)
    kind, place = _resolve(name)
    _fits(kind, name, revision, random_weights)
    options: dict[str, Any] = {"dtype": _dtype(dtype), "device": _device(device)}
    from vis_accel.zoo import build

    if kind == "timm":
        from vis_accel.zoo.hub import timm_model

        return build.placed(timm_model(place, random_weights=random_weights, revision=revision, allow_pickle=allow_pickle), **options)
    if kind == "hub":
        from vis_accel.zoo.hub import fetch

        return build.pipeline(fetch(place, revision=revision, allow_pickle=allow_pickle), allow_pickle=allow_pickle, **options)
    if kind == "folder" and is_quantized(place):
        return _quantized(place, allow_pickle=allow_pickle, dtype=dtype, device=device)
    if kind == "folder":
        return build.folder(Path(place), allow_pickle=allow_pickle, **options)
    model = build.bundled_model(name, **options)
    bundled.remember(model, name)
    return model


def _quantized(place: str, **options: Any) -> Any:
    """The float model of a folder that `vis-accel quantize` wrote, its recipe put on for good."""
    from vis_accel.apply import accelerate

    name, recipe = opened_as(place)
    model = load(name, **options)
    accelerate(model, recipe)
    return model


def _resolve(name: str) -> tuple[str, str]:
    """What sort of name it is ("bundled", "folder", "hub", "timm"), and the name or path that goes with it."""
    if name in bundled.MODELS:
        return "bundled", name
    if name.startswith("timm/"):
        return "timm", name.removeprefix("timm/")
    path = os.path.expanduser(name)
    if name and os.path.isdir(path):
        return "folder", path
    if _HUB.fullmatch(name) and ".." not in name and not name.startswith("."):
        return "hub", name
    if os.path.isfile(path):
        raise ModelError(f"{name} is a file; a model is a folder.", hint=f"give {_FORMS}")
    if name.startswith((".", "~", os.sep)) or name.count("/") > 1:
        raise ModelError(f"There is no folder {shown(name)}.", hint=f"give one of {', '.join(bundled.MODELS)}, {_FORMS}")
    near = closest(name, bundled.MODELS)
    raise UnknownNameError(
        f"There is no bundled model named {shown(name)}, and no folder either.",
        hint=(f"did you mean {either(near)}?" if near else f"bundled: {', '.join(bundled.MODELS)}") + f" Or give {_FORMS}.",
    )


def _fits(kind: str, name: str, revision: str | None, random_weights: bool) -> None:
    if random_weights and kind != "timm":
        raise UsageError(f"random_weights is for timm/NAME; {shown(name)} comes with its weights.", hint="leave out --random-weights")
    if revision is not None and kind not in ("hub", "timm"):
        raise UsageError(f"revision is for models on the hub; {shown(name)} is on this machine.", hint="leave out --revision")


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    import torch

    if isinstance(dtype, torch.dtype):
        dtype = str(dtype)
    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in _DTYPES:
        raise UsageError(f"There is no dtype {shown(name)} for weights.", hint=f"allowed: {', '.join(_DTYPES)}")
    found: torch.dtype = getattr(torch, name)
    return found


def _device(device: str | torch.device | None) -> torch.device:
    import torch

    try:
        found = torch.device("cpu" if device is None else device)
        if found.type != "meta":
            torch.empty(1, device=found)  # only this tells whether it is there
            return found
        reason = "it holds no data"
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
    hint = "device='cpu', or 'cuda' with a GPU and its build of PyTorch"
    raise UsageError(f"Cannot use the device {shown(str(device))}: {reason}", hint=hint)
