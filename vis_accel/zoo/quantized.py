"""Folders that `vis-accel quantize` wrote: which model they are of, and the recipe that puts their layers on it.

quantized.json           format, model, recipe
quantized.safetensors    whole-number weights, scales and ranges (precision/saved.py)
model/                   a copy of the float model, if it was a folder; bundled models and those of a hub are named instead
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vis_accel.errors import DataError
from vis_accel.files import write_atomic
from vis_accel.method import Method
from vis_accel.recipe import Recipe
from vis_accel.strict_json import dumps, loads, read_form, to_form

__all__ = ["COPY", "Quantized", "is_quantized", "opened_as", "read", "write"]

FORMAT = 1
INDEX, COPY = "quantized.json", "model"


@dataclass(frozen=True, kw_only=True)
class Quantized:
    """What such a folder says.

    Attributes:
        format: of the folder.
        model: a name that `load` knows; "model": the copy in the folder.
        recipe: the whole recipe, as it was asked for.
    """

    format: int
    model: str
    recipe: str


def is_quantized(model: Any) -> bool:
    """Whether `model` is the path of such a folder."""
    return isinstance(model, (str, os.PathLike)) and (Path(os.path.expanduser(model)) / INDEX).is_file()


def write(folder: Path, model: str, recipe: str) -> None:
    """Writes the index: last of all, for a folder without it is none of these."""
    write_atomic(folder / INDEX, dumps(to_form(Quantized(format=FORMAT, model=model, recipe=recipe), "the folder"), indent=1) + "\n")


def read(folder: Path) -> Quantized:
    """Reads the index.

    Raises:
        DataError: another format, or a broken file.
    """
    path = folder / INDEX
    form = loads(path.read_text(encoding="utf-8"), str(path), DataError)
    version = form.get("format") if isinstance(form, dict) else None
    if version != FORMAT:
        raise DataError(f"{path} is of format {version}; this version of vis-accel reads {FORMAT}.", hint="quantize the model again")
    found: Quantized = read_form(Quantized, form, str(path), DataError)
    return found


def opened_as(model: str | os.PathLike[str]) -> tuple[str, Recipe]:
    """The float model of such a folder, and the recipe that takes its layers from the folder."""
    folder = Path(os.path.expanduser(model))
    found = read(folder)
    methods = [_from(folder, method) for method in Recipe.parse(found.recipe).methods]
    return str(folder / COPY) if found.model == COPY else found.model, Recipe(methods)


def _from(folder: Path, method: Any) -> Method:
    """A method that rounds takes its layers from the folder."""
    found: Method = replace(method, saved=str(folder)) if hasattr(method, "saved") else method
    return found
