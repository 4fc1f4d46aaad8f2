"""From a folder that is on this machine to a pipeline or a network; every way in passes the same checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vis_accel.errors import MissingDependencyError, ModelError, shown
from vis_accel.zoo import bundled, check, timm_folder
from vis_accel.zoo import folder as folders

__all__ = ["bundled_model", "classifier", "folder", "pipeline", "placed"]

_MOST = 10**6  # no scheduler has more steps or longer sequences


def bundled_model(name: str, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A model of the package, its hashes compared first."""
    card, place = bundled.describe(name), bundled.folder(name)
    bundled.verify(place, card.files)
    if card.kind == "pipeline":
        return pipeline(place, allow_pickle=False, dtype=dtype, device=device)
    return classifier(place, card, dtype=dtype, device=device)


def folder(place: Path, *, allow_pickle: bool, dtype: torch.dtype, device: torch.device) -> Any:
    """A folder of the user's, of diffusers' layout or timm's; one that was sealed is held to its seal."""
    if (place / bundled.CARD).is_file() and folders.read_json(place / bundled.CARD).get("files"):
        card = bundled.read_card(place)
        bundled.verify(place, card.files)
        if card.kind != "pipeline":
            return classifier(place, card, dtype=dtype, device=device)
    if timm_folder.is_timm_folder(place):
        return placed(timm_folder.load(place), dtype=dtype, device=device)
    return pipeline(place, allow_pickle=allow_pickle, dtype=dtype, device=device)


def pipeline(place: Path, *, allow_pickle: bool, dtype: torch.dtype, device: torch.device) -> Any:
    """Inspects the folder, checks each component, lets diffusers load it, and looks at what it loaded.

    Raises:
        ModelError: whatever is wrong, by file and tensor.
        MissingDependencyError: the pipeline or a component needs transformers.
    """
    layout = folders.inspect(place)
    import diffusers

    kind = _class(diffusers, layout.pipeline, diffusers.DiffusionPipeline, place / folders.INDEX)
    if getattr(kind, "_load_connected_pipes", False):
        raise ModelError(f"{place}: a {layout.pipeline} fetches other models on its own.", hint="load the pipeline it is made of")
    headers = {part.name: _checked(diffusers, part, allow_pickle) for part in layout.components}
    word = "dtype" if tuple(map(int, diffusers.__version__.split(".")[:2])) >= (0, 40) else "torch_dtype"
    options: dict[str, Any] = {word: dtype, "use_safetensors": None if allow_pickle else True}
    names = folders.read_json(place / folders.INDEX).get("id2label")
    if isinstance(names, dict) and all(str(key).isdecimal() for key in names):
        options["id2label"] = {int(key): str(name) for key, name in names.items()}  # JSON keys are text, and diffusers complains of them
    try:
        loaded = kind.from_pretrained(str(place), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # a foreign loader raises what it likes; the user asked for one folder, and it is at fault
        raise ModelError(f"diffusers cannot load {place}: {type(error).__name__}: {shown(str(error), 300)}") from error
    for part in layout.components:
        found = getattr(loaded, part.name, None)
        if found is None or type(found).__name__.removesuffix("Fast") != part.class_name.removesuffix("Fast"):
            raise ModelError(f"{place}: {part.name} should be a {part.class_name}; {type(found).__name__} was loaded.")
        if isinstance(found, nn.Module):
            check.finite(found, part.folder, headers[part.name])
    return loaded.to(device)


def classifier(place: Path, card: bundled.ModelCard, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The package's own network, by the card's kind and configuration, with model.safetensors."""
    from safetensors.torch import load_file

    from vis_accel.zoo.feature_net import ConvClassifier
    from vis_accel.zoo.vit import build_vit

    make: Any = ConvClassifier if card.kind == "features" else build_vit

    files = check.weight_files(place, "model")
    headers = check.read_headers(files)
    size = sum(file.stat().st_size for file in files)
    network = check.build_empty(lambda: make(**card.config), size, len(headers), place / bundled.CARD)
    check.compare(network, headers)
    want = network.state_dict()
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    state = {name: stored[name].to(tensor.dtype, copy=True) for name, tensor in want.items()}  # a copy: no tie to the file on the disk
    network.load_state_dict(state, assign=True)
    check.finite(network, place, headers)
    return placed(network, dtype=dtype, device=device)


def placed(network: nn.Module, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """In evaluation mode, of that dtype, on that device."""
    return network.eval().to(device=device, dtype=dtype)


def _checked(diffusers: Any, part: folders.Component, allow_pickle: bool) -> dict[str, check.Header]:
    """Checks one component before anything loads it; its headers, if it has weights that this package can name."""
    if part.library == "diffusers":
        kind = _class(diffusers, part.class_name, (diffusers.ModelMixin, diffusers.SchedulerMixin), part.folder)
        if issubclass(kind, diffusers.ModelMixin):
            return check.component(part, kind, allow_pickle=allow_pickle)
        _moderate(part)
        return {}
    if part.class_name.endswith(("Tokenizer", "TokenizerFast", "Processor", "Extractor")):
        if files := folders.pickled(part.folder):
            raise folders.refuse_pickle(files, "plain vocabulary")
        return {}
    return check.read_headers(check.weight_files(part.folder, "model", allow_pickle=allow_pickle))


def _class(diffusers: Any, name: str, bases: Any, source: Path) -> type[Any]:
    """A class of diffusers by name, which must derive from one of `bases`."""
    kind = getattr(diffusers, name, None)
    if not isinstance(kind, type):
        message = f"{source} asks for {shown(name)}, which diffusers {diffusers.__version__} does not have."
        raise ModelError(message, hint="pip install -U diffusers")
    if "dummy_" in kind.__module__:
        message = f"{name} needs a package that is not installed, most likely transformers."
        raise MissingDependencyError(message, hint="pip install 'vis-accel[text]'")
    if not issubclass(kind, bases):
        raise ModelError(f"{source} asks for {shown(name)} of diffusers, which is no such thing as is wanted here.")
    return kind


def _moderate(part: folders.Component) -> None:
    """Refuses a scheduler's configuration that would fill the memory."""
    source = part.folder / "scheduler_config.json"
    for key, value in folders.read_json(source).items():
        if isinstance(value, int) and abs(value) > _MOST:
            raise ModelError(f"{source}: {key} is {shown(value)}; no scheduler needs more than {_MOST:,}.")
