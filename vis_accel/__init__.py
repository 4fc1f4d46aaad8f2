"""Faster diffusion pipelines and vision transformers, with the price in quality beside every speed.

    import vis_accel
    with vis_accel.accelerate(pipe, "dpm(steps=12)"):
        images = pipe(...).images

Importing this package loads neither PyTorch nor anything built on it; each name below is fetched when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vis_accel.apply import accelerate
    from vis_accel.benchmark import bench
    from vis_accel.errors import (
        ConflictError,
        DataError,
        MissingDependencyError,
        ModelError,
        NoEffectError,
        NotApplicableError,
        OutputError,
        RecipeError,
        RunError,
        UnknownNameError,
        UsageError,
        VisAccelError,
    )
    from vis_accel.recipe import Recipe
    from vis_accel.record import Card
    from vis_accel.zoo.load import load

    __version__: str

__all__ = [
    "Card",
    "ConflictError",
    "DataError",
    "MissingDependencyError",
    "ModelError",
    "NoEffectError",
    "NotApplicableError",
    "OutputError",
    "Recipe",
    "RecipeError",
    "RunError",
    "UnknownNameError",
    "UsageError",
    "VisAccelError",
    "accelerate",
    "bench",
    "load",
]

_HOMES = {"Card": "record", "Recipe": "recipe", "accelerate": "apply", "bench": "benchmark", "load": "zoo"}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("vis-accel")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"vis_accel.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value  # from now on without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
