"""Whether a diffusers folder may be shown to diffusers at all: read as data, before any library that could act on it.

Refused  code (a .py file, a class of a foreign library, `auto_map`, a custom pipeline), pickled weights, links and paths that leave the
         folder, anything that is not a plain file, JSON that is not JSON or nests too deep, and what would fetch another model (adapters,
         connected pipelines).
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vis_accel.errors import ModelError, either, shown

__all__ = ["INDEX", "PICKLES", "Component", "Layout", "inspect", "pickled", "read_index", "read_json", "refuse_pickle"]

INDEX = "model_index.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")

# What a prompt needs of transformers; the Auto classes are not here, since they let a file choose the class. timm builds no component.
_TRANSFORMERS = frozenset(
    ("BertModel", "CLIPTextModel", "CLIPTextModelWithProjection", "CLIPVisionModel", "CLIPVisionModelWithProjection", "Gemma2Model",
     "GemmaModel", "LlamaForCausalLM", "LlamaModel", "Qwen2Model", "Qwen2_5_VLForConditionalGeneration", "SiglipVisionModel",
     "T5EncoderModel", "UMT5EncoderModel",
     "BertTokenizer", "BertTokenizerFast", "CLIPTokenizer", "CLIPTokenizerFast", "GemmaTokenizer", "GemmaTokenizerFast", "LlamaTokenizer",
     "LlamaTokenizerFast", "Qwen2Tokenizer", "Qwen2TokenizerFast", "T5Tokenizer", "T5TokenizerFast",
     "CLIPFeatureExtractor", "CLIPImageProcessor", "Qwen2VLProcessor", "SiglipImageProcessor")
)  # fmt: skip
_IN_DIFFUSERS = {("stable_diffusion", "StableDiffusionSafetyChecker")}  # diffusers' own code under an older spelling
_LIBRARIES = "diffusers, transformers and timm"
_ACTS_ON_CODE = ("auto_map", "custom_pipeline", "custom_pipelines", "trust_remote_code", "_module_path")
_FETCHES = ("adapter_config.json",)
_JSON_BYTES = 16 * 2**20  # the index of a large sharded model has 0.2 MB
_MAX_DEPTH = 50
_MAX_ENTRIES = 10_000


@dataclass(frozen=True)
class Component:
    """A part of a pipeline: what `model_index.json` says of it, and where it lies."""

    name: str
    library: str
    class_name: str
    folder: Path


@dataclass(frozen=True)
class Layout:
    """A folder that passed: its pipeline's class and its components."""

    folder: Path
    pipeline: str
    components: tuple[Component, ...]


def inspect(folder: Path) -> Layout:
    """Reads what a diffusers folder consists of.

    Raises:
        ModelError: for anything listed at the top of this file; the message names the file.
    """
    files = list(_walk(folder))
    if folder / INDEX not in files:
        only = [path for path in files if path.suffix in PICKLES or path.suffix == ".safetensors"]
        found = f"it has {only[0].relative_to(folder)}, weights without a description" if only else "it is no diffusers folder"
        raise ModelError(f"{folder} has no {INDEX}: {found}.", hint="a folder as pipeline.save_pretrained writes it")
    layout = read_index(folder / INDEX)
    for component in layout.components:
        if not component.folder.is_dir():
            raise ModelError(f"{component.folder} is missing; {INDEX} lists {component.name}.")
    for path in files:
        if path.suffix == ".py":
            hint = "move it out of the folder if you trust the rest"
            raise ModelError(f"{path} is code, and code of a model folder is never run.", hint=hint)
        if path.name in _FETCHES:
            raise ModelError(f"{path} makes the loader fetch another model.", hint="merge the adapter into the weights, or move it away")
        if path.name.endswith("config.json"):
            read_json(path)
    return layout


def read_index(path: Path) -> Layout:
    """Reads `model_index.json` alone: class names and libraries, each on the allow-list."""
    index = read_json(path)
    pipeline = index.get("_class_name")
    if not isinstance(pipeline, str) or not pipeline.isidentifier():
        message = f"{path}: _class_name is {shown(pipeline)}, a custom pipeline; its code would have to be run."
        raise ModelError(message, hint="only diffusers' own pipelines are loaded")
    entries = [(name, value) for name, value in index.items() if not name.startswith("_")]
    components = [_component(path, name, value) for name, value in entries if _names_class(path, name, value)]
    if not components:
        raise ModelError(f"{path} lists no components.")
    return Layout(path.parent, pipeline, tuple(components))


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object of a model folder. Unlike a card it may hold infinities: schedulers are saved with them."""
    try:
        size = path.stat().st_size
        if size > _JSON_BYTES:
            raise ModelError(f"{path} has {size:,} bytes; at most {_JSON_BYTES:,} are read.")
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise ModelError(f"{path} nests more than {_MAX_DEPTH} deep.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} must hold an object; got {shown(value)}.")
    _refuse_code(path, value)
    return value


def _refuse_code(path: Path, value: dict[str, Any]) -> None:
    """Refuses keys that name code, at any depth, level by level, since a recursion is what deep nesting breaks."""
    level: list[Any] = [value]
    for _ in range(_MAX_DEPTH):
        objects = [group for group in level if isinstance(group, dict)]
        for key in _ACTS_ON_CODE:
            if any(group.get(key) for group in objects):
                raise ModelError(f"{path} has {key!r}: it asks for code of the folder to be run, which is never done.")
        groups = [group.values() if isinstance(group, dict) else group for group in level]
        level = [element for group in groups for element in group if isinstance(element, (dict, list))]
    if level:
        raise ModelError(f"{path} nests more than {_MAX_DEPTH} deep.")


def _names_class(path: Path, name: str, value: object) -> bool:
    """Whether an entry of the index is a component; plain values are arguments of the pipeline."""
    if isinstance(value, list) and value != [None, None] and any(not isinstance(element, (int, float)) for element in value):
        if len(value) != 2 or not all(isinstance(element, str) for element in value):
            raise ModelError(f"{path}: {shown(name)} is {shown(value)}; a component is [library, class].")
        return True
    return False


def _component(path: Path, name: str, value: list[str]) -> Component:
    library, class_name = value
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", name):
        raise ModelError(f"{path}: {shown(name)} is no name of a component, and its folder could lie outside of {path.parent}.")
    known = (library == "transformers" and class_name in _TRANSFORMERS) or (library, class_name) in _IN_DIFFUSERS
    allowed = library == "diffusers" or known
    if not allowed and library in ("transformers", "timm"):
        raise ModelError(f"{path}: {name} is {shown(class_name)} of {library}, which is not among the classes a pipeline may name.")
    if not allowed:
        raise ModelError(f"{path}: {name} comes from {shown(library)}; only classes of {_LIBRARIES} are loaded.")
    if not class_name.isidentifier() or class_name.startswith("_"):
        raise ModelError(f"{path}: {name} has the class {shown(class_name)}, which is no name of a class.")
    return Component(name, library, class_name, path.parent / name)


def _walk(folder: Path) -> Iterator[Path]:
    """Every file, hidden folders left out; refuses whatever is not a plain file inside the folder."""
    roots = _roots(folder)
    for count, entry in enumerate(_entries(folder), start=1):
        path = Path(entry.path)
        if count > _MAX_ENTRIES:
            raise ModelError(f"{folder} has more than {_MAX_ENTRIES:,} entries; it is no model folder.")
        if entry.is_symlink():
            target = os.path.realpath(path)
            if not any(target.startswith(root + os.sep) for root in roots):
                raise ModelError(f"{path} is a link to {target}, outside of {folder}.", hint="copy the file into the folder")
            if not os.path.isfile(target):
                raise ModelError(f"{path} is a link to {target}, which is no file.", hint="copy it into the folder")
        elif not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            raise ModelError(f"{path} is neither a file nor a folder.")
        yield path


def _roots(folder: Path) -> list[str]:
    """Where links may lead: into the folder, and in the hub's cache to its blobs, of the repository or shared."""
    roots = [os.path.realpath(folder)]
    place = Path(os.path.abspath(folder))
    if place.parent.name == "snapshots":
        repository = place.parent.parent
        roots += [os.path.realpath(parent / "blobs") for parent in (repository, repository.parent) if (parent / "blobs").is_dir()]
    return roots


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    waiting: list[str | Path] = [folder]
    while waiting:
        place = waiting.pop()
        try:
            entries = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            raise ModelError(f"Cannot read {place}: {error.strerror}.") from error
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                yield entry
            elif not entry.name.startswith("."):
                waiting.append(entry.path)


def pickled(folder: Path) -> list[Path]:
    """Weight files of `folder` that would have to be unpickled."""
    return sorted(path for path in folder.iterdir() if path.suffix in PICKLES)


def refuse_pickle(files: list[Path], wanted: str) -> ModelError:
    """The error for a component that has only pickled weights."""
    names = either(path.name for path in files)
    return ModelError(
        f"{files[0].parent} has no {wanted}, only {names}: reading it can run any program it holds.",
        hint="ask the author for safetensors; if you trust the file: allow_pickle=True, on the command line --allow-pickle",
    )
