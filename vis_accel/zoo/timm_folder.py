"""Folders in timm's own layout, model.safetensors and config.json, as fine-tuning writes them: timm reads them without this package.

    timm.create_model("local-dir:FOLDER", pretrained=True)
    vis_accel.load("FOLDER")                               the same, read as data and checked first

Weights are float32, adapters merged.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from vis_accel.errors import ModelError, shown
from vis_accel.files import write_atomic
from vis_accel.zoo import check
from vis_accel.zoo.folder import read_json

__all__ = ["CONFIG", "WEIGHTS", "architecture_of", "is_timm_folder", "load", "save"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_PLAIN = (int, float, str, bool)  # values an architecture's argument may have, or lists of them
_KEPT = ("mean", "std", "first_conv", "classifier", "fixed_input_size", "license")  # of timm's configuration


def is_timm_folder(folder: Path) -> bool:
    """Whether a folder is laid out so: config.json names an architecture of timm, and it is no diffusers folder."""
    return (folder / CONFIG).is_file() and not (folder / "model_index.json").exists() and "architecture" in read_json(folder / CONFIG)


def architecture_of(network: Any) -> str | None:
    """Name under which timm builds this network; None if it is not one of timm's."""
    found = network.pretrained_cfg.get("architecture")
    if found is None and type(network).__name__ == "VisionTransformer" and "HybridEmbed" in type(network.patch_embed).__name__:
        from vis_accel.zoo.registered import ARCHITECTURE

        return ARCHITECTURE
    return None if found is None else str(found)


def save(network: Any, folder: Path, *, size: int, classes: Sequence[str], arguments: Mapping[str, Any]) -> None:
    """Writes weights in float32 and the configuration, each whole or not at all.

    Args:
        network: of timm, adapters merged.
        folder: where to.
        size: side of the images in pixels.
        classes: names, in the order of the logits.
        arguments: of the architecture, besides the number of classes.
    """
    from safetensors.torch import save as serialise

    facts = {key: network.pretrained_cfg[key] for key in _KEPT if network.pretrained_cfg.get(key) is not None}
    facts |= {"input_size": [3, size, size], "num_classes": len(classes), "crop_pct": 1.0, "interpolation": "bicubic", "custom_load": False}
    config = {
        "architecture": architecture_of(network),
        "num_classes": len(classes),
        "num_features": network.num_features,
        "label_names": list(classes),
        "model_args": dict(arguments),
        "pretrained_cfg": facts,
    }
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.state_dict().items()}
    write_atomic(folder / WEIGHTS, serialise(state, {"format": "pt"}))
    write_atomic(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load(folder: Path) -> nn.Module:
    """The network of such a folder, in evaluation mode.

    `pretrained_cfg` has "architecture" and "label_names"; `model_args` of the configuration is kept there too.

    Raises:
        ModelError: a configuration that names no architecture of timm or does not fit the weights, weights that are broken or not finite.
    """
    from safetensors.torch import load_file

    config = read_json(folder / CONFIG)
    build = _builder(folder, config)
    files = check.weight_files(folder, "model")
    headers = check.read_headers(files)
    size = sum(file.stat().st_size for file in files)
    check.compare(check.build_empty(build, size, len(headers), folder / CONFIG), headers)
    network: Any = build()
    network.load_state_dict({name: tensor for file in files for name, tensor in load_file(file).items()})
    check.finite(network, folder, headers)
    facts = {key: tuple(value) if isinstance(value, list) else value for key, value in config["pretrained_cfg"].items()}
    names = tuple(config.get("label_names") or ())
    more = {"architecture": config["architecture"], "label_names": names, "model_args": config.get("model_args") or {}}
    network.pretrained_cfg = facts | more
    network.default_cfg = network.pretrained_cfg  # timm's older name of it
    found: nn.Module = network.eval()  # this, and nothing else, throws away tables that some networks keep between calls in evaluation
    return found


def _builder(folder: Path, config: dict[str, Any]) -> Any:
    """A function that builds the configuration's architecture, with random weights."""
    import timm

    from vis_accel.vit_models.families import register
    from vis_accel.zoo.registered import ARCHITECTURE

    path, name, arguments, facts = folder / CONFIG, config.get("architecture"), config.get("model_args") or {}, config.get("pretrained_cfg")
    if isinstance(name, str):
        register(name)  # the architectures that timm lacks
    if not isinstance(name, str) or not (timm.is_model(name) or name == ARCHITECTURE):
        raise ModelError(f"{path} asks for the architecture {shown(name)}, which timm {timm.__version__} does not have.")
    if not isinstance(facts, dict) or not isinstance(config.get("num_classes"), int):
        raise ModelError(
            f"{path} lacks pretrained_cfg or num_classes.", hint="only folders that vis-accel finetune or timm wrote are opened"
        )
    if not isinstance(arguments, dict) or not all(_plain(value) for value in arguments.values()):
        raise ModelError(f"{path}: model_args must hold plain values; got {shown(arguments)}.")

    def build() -> Any:
        return timm.create_model(name, num_classes=config["num_classes"], **arguments)

    return build


def _plain(value: object) -> bool:
    return isinstance(value, _PLAIN) or (isinstance(value, list) and len(value) <= 8 and all(isinstance(part, _PLAIN) for part in value))
