"""Oracle on a real network: with many steps every deterministic solver makes the image that Heun makes.

If one does not, its noise levels and the network's times do not belong together. Closer than this the bundled network has no answer of its
own: it was trained at whole times only, and what it says between them depends a little on where they lie, so that Heun on 200 and on 400
steps differ by 0.0005.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from vis_accel.generation import Job
from vis_accel.recipe import Recipe
from vis_accel.trajectories import apart, record
from vis_accel.zoo import describe, load

IMAGES = range(2)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    found: Any = load("cifar10-dit")
    found.set_progress_bar_config(disable=True)
    return found


def pixels(pipeline: Any, text: str) -> Tensor:
    solver: Any = Recipe.parse(text).methods[0]
    latents = record(pipeline, solver, Job(**describe("cifar10-dit").job), IMAGES, len(IMAGES)).points[-1]
    with torch.no_grad():
        image: Tensor = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample / 2  # a range of 1
    return image


@pytest.fixture(scope="module")
def converged(pipeline: Any) -> Tensor:
    return pixels(pipeline, "heun(steps=200, schedule='karras')")


@pytest.mark.parametrize(
    "text",
    [
        "dpm(steps=200)",
        "dpm(steps=200, prediction='noise')",
        "unipc(steps=200, schedule='logsnr')",
        "ipndm(steps=200)",
        "adams(steps=200)",
        "deis(steps=200, schedule='logsnr')",
        "singlestep(steps=150)",
        "plms(steps=200)",
    ],
)
def test_many_steps_of_any_solver_make_the_image_of_heun(pipeline: Any, converged: Tensor, text: str) -> None:
    assert apart(pixels(pipeline, text), converged) <= 1e-3
