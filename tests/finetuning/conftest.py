"""Tiny folders of images and the options to fine-tune timm's test networks on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from vis_accel.finetuning.options import FinetuneOptions

COLOURS = {"blue": (40, 60, 200), "red": (200, 60, 40)}


def write_images(folder: Path, count: int, *, side: int = 32, seed: int = 0) -> None:
    """`count` noisy images of each colour, PNG, a class a colour."""
    random = numpy.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            noisy = numpy.array(colour) + random.normal(0, 40, (side, side, 3))
            Image.fromarray(noisy.clip(0, 255).astype(numpy.uint8)).save(folder / name / f"{index:03d}.png")


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ with 12 images a class, test/ with 4."""
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", 12)
    write_images(root / "test", 4, seed=1)
    return root


@pytest.fixture
def options(images: Path, tmp_path: Path) -> Callable[..., FinetuneOptions]:
    """Options of a run of a few steps on timm's test_vit."""

    def made(**changes: Any) -> FinetuneOptions:
        plain: dict[str, Any] = {
            "model": "timm/test_vit", "random_weights": True, "size": 32, "data": images, "output": tmp_path / "out", "steps": 3,
            "batch": 8, "precision": "no", "workers": 1,
        }  # fmt: skip
        return FinetuneOptions(**{**plain, **changes})

    return made


@pytest.fixture
def draw() -> Callable[..., None]:
    """`write_images`."""
    return write_images
