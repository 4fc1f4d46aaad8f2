"""Small targets that are wide enough for integer kernels: a DiT pipeline, a pixel U-Net pipeline, a vision transformer."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from vit_models.families import images, tiny

NAMES = ("dit", "unet", "vit")


@cache
def _dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, num_layers=2, sample_size=8, norm_num_groups=4
    )
    vae = diffusers.AutoencoderKL(
        latent_channels=4, norm_num_groups=4, block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    return diffusers.DiTPipeline(transformer, vae, diffusers.DDIMScheduler(clip_sample=False))


@cache
def _unet() -> Any:
    unet = diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=4, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())


def build(name: str) -> Any:
    """A fresh target with equal weights every time."""
    if name == "vit":
        return tiny("plain")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        pipe = copy.deepcopy(_dit() if name == "dit" else _unet())
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def answer(target: Any) -> Tensor:
    """What the target makes of three fixed inputs."""
    if isinstance(target, nn.Module):
        found: Tensor = target(images())
        return found
    generator = [torch.Generator().manual_seed(i) for i in range(3)]
    if hasattr(target, "unet"):
        return torch.from_numpy(target(batch_size=3, num_inference_steps=3, generator=generator, output_type="np").images)
    caught: list[Tensor] = []
    hook = target.vae.decoder.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].clone()))
    pictures = target([1, 2, 3], num_inference_steps=3, generator=generator, output_type="pt").images
    hook.remove()
    return torch.cat([caught[0].flatten(), pictures.flatten()])  # latents too: pixels are clamped


def parts(target: Any) -> list[nn.Module]:
    """The networks of the target."""
    return [target] if isinstance(target, nn.Module) else [part for part in target.components.values() if isinstance(part, nn.Module)]


def state(target: Any) -> list[Any]:
    """Names and identities of every attribute of every module and of the pipeline; of its scheduler, which a run changes, the names."""
    modules = [module for part in parts(target) for module in part.modules()]
    others = [] if isinstance(target, nn.Module) else [target]
    plain = [[(key, id(value)) for key, value in vars(one).items()] for one in (*others, *modules)]
    tables = [[sorted(map(str, value)) for value in vars(one).values() if isinstance(value, dict)] for one in modules]
    weights = [[id(parameter) for parameter in module._parameters.values()] for module in modules]
    return [plain, tables, weights, [] if isinstance(target, nn.Module) else sorted(vars(target.scheduler))]
