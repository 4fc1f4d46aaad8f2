"""The same seed gives the same image, in every pipeline, alone or in a batch: also in those that do not pass their generator on."""

from __future__ import annotations

import pytest
import torch
from pipelines.tiny import EDITING, TINIES, normal

from vis_accel import accelerate


@pytest.mark.parametrize("text", ["ddim(eta=1.0)", "unipc"])
@pytest.mark.parametrize("name", TINIES)
def test_same_seed_same_image(name: str, text: str) -> None:
    tiny = TINIES[name]
    pipe = tiny.build(torch.float32)
    with accelerate(pipe, text):
        both = tiny.call(pipe, guidance=tiny.guided)
        assert torch.equal(tiny.call(pipe, guidance=tiny.guided), both)
        alone = tiny.call(pipe, images=(1,), guidance=tiny.guided)
        assert float((alone - both[1:]).abs().max()) <= 1e-5 * max(1.0, float(both.abs().max()))
        other = tiny.call(pipe, images=(2,), guidance=tiny.guided)
        assert not torch.allclose(other, alone)


@pytest.mark.parametrize("name", ["StableDiffusionImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"])
def test_same_seed_same_edit(name: str) -> None:
    """From pixels: the autoencoder takes part, and its rounding may not change which noise an image gets."""
    tiny = EDITING[name]
    pipe = tiny.build(torch.float32)
    images = normal(6, 3, 8, 8, images=(0, 1), dtype=torch.float32).sigmoid()
    with accelerate(pipe, "ddim(eta=1.0)"):
        both = tiny.call(pipe, image=images, strength=0.8)
        assert torch.equal(tiny.call(pipe, image=images, strength=0.8), both)
        alone = tiny.call(pipe, images=(1,), image=images[1:], strength=0.8)
    assert float((alone - both[1:]).abs().max()) <= 1e-5 * max(1.0, float(both.abs().max()))


def test_the_noise_of_two_images_differs() -> None:
    tiny = TINIES["DiTPipeline"]
    pipe = tiny.build()
    with accelerate(pipe, "ddpm"), accelerate(pipe, "ddpm"):
        found = tiny.call(pipe, images=(0, 0, 1))
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
