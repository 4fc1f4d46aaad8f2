"""The tiny pipelines with networks deep enough to have something to reuse: three levels in U-Nets, three blocks in transformers."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import diffusers
import torch
from pipelines.tiny import LATENTS, SIZE, TINIES, WIDTH
from torch import nn

from vis_accel.pipelines import view

LEVELS = (WIDTH, 2 * WIDTH, 2 * WIDTH)
UNETS = ("DDIMPipeline", "StableDiffusionPipeline")
TRANSFORMERS = ("DiTPipeline", "PixArtAlphaPipeline", "StableDiffusion3Pipeline", "FluxPipeline")
FITS = {"deepcache": UNETS, "taylor": TRANSFORMERS, "firstblock": TRANSFORMERS}  # a new cache must say what it fits: the contracts ask


def pixel_unet(layers: int = 2) -> nn.Module:
    """Attention in the deepest level and in the middle."""
    kinds = ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D")
    return diffusers.UNet2DModel(
        sample_size=SIZE, in_channels=3, out_channels=3, layers_per_block=layers, norm_num_groups=4, block_out_channels=LEVELS,
        down_block_types=kinds[0], up_block_types=kinds[1], attention_head_dim=4,
    )  # fmt: skip


def text_unet() -> nn.Module:
    """Text in every level but the deepest, as Stable Diffusion has it."""
    return diffusers.UNet2DConditionModel(
        sample_size=SIZE, in_channels=LATENTS, out_channels=LATENTS, layers_per_block=2, norm_num_groups=4, block_out_channels=LEVELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=WIDTH,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), attention_head_dim=2,
    )  # fmt: skip


@cache
def _made(name: str) -> Any:
    pipe = TINIES[name].build()
    with torch.random.fork_rng():
        torch.manual_seed(12)
        if name in UNETS:
            network = pixel_unet() if name == "DDIMPipeline" else text_unet()
        else:
            deep = {"num_layers": 3} | ({"num_single_layers": 2} if name.startswith("Flux") else {})
            old = pipe.transformer
            network = type(old).from_config({**old.config, **deep})
            for parameter in network.parameters():  # zero gates would make a transformer that does nothing
                nn.init.normal_(parameter, std=0.2)
    part = "unet" if name in UNETS else "transformer"
    pipe.register_modules(**{part: network.double().eval().requires_grad_(False)})
    return pipe


def deeper(name: str, dtype: torch.dtype = torch.float64) -> Any:
    """A fresh pipeline; equal weights every time."""
    pipe = copy.deepcopy(_made(name)).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def latents(pipe: Any, steps: int | None = 10, images: tuple[int, ...] = (0, 1), guidance: float = 3.0) -> torch.Tensor:
    """What the pipeline makes of some of its images."""
    tiny = next(tiny for tiny in TINIES.values() if tiny.name == type(pipe).__name__)
    return tiny.call(pipe, images=images, steps=steps, guidance=guidance)


class Watched:
    """Which calls of a pipeline's denoiser ran its deepest part, in order: True for a full one."""

    def __init__(self, pipe: Any) -> None:
        network = view(pipe).denoiser
        if hasattr(network, "mid_block"):
            last = network.mid_block.resnets[0].conv1
        else:
            block = network.transformer_blocks[1]
            last = (block.attn1 if hasattr(block, "attn1") else block.attn).to_q
        self.full: list[bool] = []
        self._network, self._last = network, last

    def __enter__(self) -> Watched:
        def begin(*_: object) -> None:
            self.full.append(False)

        def deep(*_: object) -> None:
            self.full[-1] = True

        self._hooks = [self._network.register_forward_pre_hook(begin), self._last.register_forward_pre_hook(deep)]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()
