"""Tiny random pipelines: every family of the table, 8x8 latents, one layer, no network, no text encoder.

A `Tiny` builds a pipeline, calls it for some of its three images, and gives the same guided network as a plain function: the guidance is
written out by hand here, once per convention, so that the pull form knows nothing of what a pipeline does. Image i has its own seed and
its own condition wherever it stands in a batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

SIZE, LATENTS, WIDTH = 8, 4, 8
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
Network = Callable[[Tensor, float], Tensor]


def seeds(images: Sequence[int]) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(70 + i) for i in images]


def normal(key: int, *shape: int, images: Sequence[int], dtype: torch.dtype) -> Tensor:
    """One row per image, float32 values in any dtype: conditions, images, masks."""
    rows = [torch.randn(shape, generator=torch.Generator().manual_seed(1000 * key + i)) for i in images]
    return torch.stack(rows).to(dtype)


def _vae() -> nn.Module:
    blocks = {"down_block_types": ("DownEncoderBlock2D",), "up_block_types": ("UpDecoderBlock2D",), "block_out_channels": (WIDTH,)}
    return diffusers.AutoencoderKL(**blocks, latent_channels=LATENTS, norm_num_groups=4, sample_size=SIZE, shift_factor=0.1)


def _text_unet(**options: Any) -> nn.Module:
    settings: dict[str, Any] = {
        "sample_size": SIZE,
        "in_channels": LATENTS,
        "out_channels": LATENTS,
        "layers_per_block": 1,
        "block_out_channels": (WIDTH,),
        "down_block_types": ("DownBlock2D",),  # the middle alone attends to the text
        "up_block_types": ("UpBlock2D",),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**settings | options)


def _pixel_unet(channels: int = 3) -> nn.Module:
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",), "block_out_channels": (WIDTH,)}
    return diffusers.UNet2DModel(
        **blocks, sample_size=SIZE, in_channels=3, out_channels=channels, layers_per_block=1, norm_num_groups=4, add_attention=False
    )


@dataclass(frozen=True, eq=False)
class Tiny:
    """One pipeline.

    Attributes:
        make: builds it, in float32.
        conditions: (images, dtype) -> the call's arguments that depend on the image.
        network: (pipe, images, guidance) -> the guided network.
        guided: a guidance that is on.
        shape: of a latent, as the pipeline draws it.
    """

    name: str
    make: Callable[[], Any]
    conditions: Callable[[Sequence[int], torch.dtype], dict[str, Any]]
    network: Callable[[Any, Sequence[int], float], Network]
    guided: float = 3.0
    guidance_name: str | None = "guidance_scale"
    shape: tuple[int, ...] = (LATENTS, SIZE, SIZE)
    options: dict[str, Any] = field(default_factory=dict)

    def build(self, dtype: torch.dtype = torch.float64) -> Any:
        """A fresh pipeline; equal weights every time."""
        pipe = copy.deepcopy(_made(self)).to(dtype)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def call(self, pipe: Any, *, images: Sequence[int] = (0, 1), steps: int | None = 4, guidance: float = 1.0, **options: Any) -> Tensor:
        """The final latents (pixel pipelines: the images)."""
        dtype = next(self.denoiser(pipe).parameters()).dtype
        arguments = {"generator": seeds(images)} | self.options | self.conditions(images, dtype) | options
        if steps is not None:
            arguments["num_inference_steps"] = steps
        if self.guidance_name is not None:
            arguments[self.guidance_name] = guidance
        if self.pixels:
            return pipe(**arguments, batch_size=len(images), output_type="pt", return_dict=True).images
        if self.name.startswith("DiT"):
            return self._caught(pipe, arguments)
        return pipe(**arguments, output_type="latent").images

    def _caught(self, pipe: Any, arguments: dict[str, Any]) -> Tensor:
        caught: list[Tensor] = []
        hook = pipe.vae.post_quant_conv.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].clone()))
        try:
            pipe(**arguments, output_type="pt")
        finally:
            hook.remove()
        return caught[0] * pipe.vae.config.scaling_factor

    def start(self, images: Sequence[int], dtype: torch.dtype = torch.float64) -> Tensor:
        """The noise the pipeline starts from."""
        noise = torch.cat([torch.randn((1, *self.shape), generator=g, dtype=dtype) for g in seeds(images)])
        return pack(noise) if self.name.startswith("Flux") else noise

    def finish(self, latents: Tensor) -> Tensor:
        """What `call` returns when these are the final latents."""
        return (latents / 2 + 0.5).clamp(0, 1) if self.pixels else latents

    @property
    def pixels(self) -> bool:
        return self.shape[0] == 3

    @staticmethod
    def denoiser(pipe: Any) -> Any:
        return pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    def count(self, pipe: Any) -> Counter:
        return Counter(self.denoiser(pipe))


class Counter:
    """Counts the calls of a network in its with-block."""

    def __init__(self, network: nn.Module) -> None:
        self.calls, self._network = 0, network

    def __enter__(self) -> Counter:
        self._hook = self._network.register_forward_pre_hook(self._tick)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()

    def _tick(self, module: nn.Module, inputs: object) -> None:
        self.calls += 1


@cache
def _made(tiny: Tiny) -> Any:
    if not tiny.name.startswith(("DD", "DiT")):
        pytest.importorskip("transformers", reason="diffusers does not export this pipeline without it")
    with torch.random.fork_rng():
        torch.manual_seed(11)
        pipe = tiny.make()
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            module.eval().requires_grad_(False)
    return pipe


def pack(latents: Tensor) -> Tensor:
    """[B, C, H, W] -> [B, H W / 4, 4 C], as Flux packs 2x2 patches."""
    b, c, h, w = latents.shape
    return latents.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def _rows(time: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), time, dtype=torch.float32)


def _guide(conditional: Tensor, unconditional: Tensor | None, guidance: float) -> Tensor:
    return conditional if unconditional is None else unconditional + guidance * (conditional - unconditional)


# Pixels.


def _pixel_network(pipe: Any, images: Sequence[int], guidance: float) -> Network:
    return lambda x, time: pipe.unet(x, _rows(time, x)).sample


def _ddpm(**config: Any) -> Any:
    learned = config.pop("learned", False)
    scheduler = diffusers.DDPMScheduler(**{"prediction_type": "v_prediction", "clip_sample": True} | config)
    return diffusers.DDPMPipeline(_pixel_unet(6 if learned else 3), scheduler)


def _ddim() -> Any:
    return diffusers.DDIMPipeline(_pixel_unet(), diffusers.DDIMScheduler(prediction_type="v_prediction", clip_sample=False))


# DiT: class labels, conditional half first, null label 1000.


def _dit(channels: int) -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=LATENTS, out_channels=channels, num_layers=1, sample_size=SIZE,
        norm_num_groups=4,
    )  # fmt: skip
    return diffusers.DiTPipeline(transformer, _vae(), diffusers.DDIMScheduler(clip_sample=False))


def _labels(images: Sequence[int]) -> list[int]:
    return [17 * i + 3 for i in images]


def _dit_network(pipe: Any, images: Sequence[int], guidance: float) -> Network:
    def evaluate(x: Tensor, time: float, labels: list[int]) -> Tensor:
        return pipe.transformer(x, timestep=_rows(time, x), class_labels=torch.tensor(labels)).sample[:, :LATENTS]

    def network(x: Tensor, time: float) -> Tensor:
        unconditional = evaluate(x, time, [1000] * len(x)) if guidance > 1 else None
        return _guide(evaluate(x, time, _labels(images)), unconditional, guidance)

    return network


# Text: embeddings instead of prompts, unconditional half first.


def _text(images: Sequence[int], dtype: torch.dtype, *, tokens: int = 3, width: int = WIDTH) -> dict[str, Any]:
    prompt, negative = (normal(key, tokens, width, images=images, dtype=dtype) for key in (1, 2))
    return {"prompt_embeds": prompt, "negative_prompt_embeds": negative}


def _pooled(images: Sequence[int], dtype: torch.dtype) -> dict[str, Any]:
    pooled, negative = (normal(key, WIDTH, images=images, dtype=dtype) for key in (3, 4))
    return {"pooled_prompt_embeds": pooled, "negative_pooled_prompt_embeds": negative}


def _sd(cls: str, channels: int = LATENTS) -> Any:
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    scheduler = diffusers.DDIMScheduler(**BETAS, steps_offset=1)
    return getattr(diffusers, cls)(vae=_vae(), unet=_text_unet(in_channels=channels), scheduler=scheduler, **parts)


def _sd_network(pipe: Any, images: Sequence[int], guidance: float) -> Network:
    def network(x: Tensor, time: float) -> Tensor:
        text = _text(images, x.dtype)
        conditional = pipe.unet(x, _rows(time, x), encoder_hidden_states=text["prompt_embeds"]).sample
        unconditional = pipe.unet(x, _rows(time, x), encoder_hidden_states=text["negative_prompt_embeds"]).sample if guidance > 1 else None
        return _guide(conditional, unconditional, guidance)

    return network


def _sdxl(cls: str) -> Any:
    unet = _text_unet(
        addition_embed_type="text_time", addition_time_embed_dim=WIDTH, projection_class_embeddings_input_dim=7 * WIDTH
    )  # six size numbers and the pooled text
    parts: dict[str, Any] = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    scheduler = diffusers.EulerDiscreteScheduler(**{k: v for k, v in BETAS.items() if k != "clip_sample"})
    return getattr(diffusers, cls)(vae=_vae(), unet=unet, scheduler=scheduler, add_watermarker=False, **parts)


def _sdxl_network(pipe: Any, images: Sequence[int], guidance: float) -> Network:
    def evaluate(x: Tensor, time: float, text: Tensor, pooled: Tensor) -> Tensor:
        ids = torch.tensor([[SIZE, SIZE, 0, 0, SIZE, SIZE]], dtype=x.dtype).expand(len(x), -1)
        added = {"text_embeds": pooled, "time_ids": ids}
        return pipe.unet(x, _rows(time, x), encoder_hidden_states=text, added_cond_kwargs=added).sample

    def network(x: Tensor, time: float) -> Tensor:
        text, pooled = _text(images, x.dtype), _pooled(images, x.dtype)
        off = evaluate(x, time, text["negative_prompt_embeds"], pooled["negative_pooled_prompt_embeds"]) if guidance > 1 else None
        return _guide(evaluate(x, time, text["prompt_embeds"], pooled["pooled_prompt_embeds"]), off, guidance)

    return network


def _pixart(cls: str) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=LATENTS, out_channels=2 * LATENTS, num_layers=1, sample_size=SIZE,
        cross_attention_dim=WIDTH, caption_channels=WIDTH, norm_num_groups=4, use_additional_conditions=False,
    )  # fmt: skip
    scheduler = diffusers.DPMSolverMultistepScheduler()
    return getattr(diffusers, cls)(tokenizer=None, text_encoder=None, vae=_vae(), transformer=transformer, scheduler=scheduler)


def _masks(images: Sequence[int]) -> dict[str, Any]:
    mask = torch.ones(len(images), 3)
    return {"prompt_attention_mask": mask, "negative_prompt_attention_mask": mask}


def _pixart_network(pipe: Any, images: Sequence[int], guidance: float) -> Network:
    def evaluate(x: Tensor, time: float, text: Tensor) -> Tensor:
        added = {"resolution": None, "aspect_ratio": None}
        mask = torch.ones(len(images), 3)
        output = pipe.transformer(x, text, _rows(time, x), added_cond_kwargs=added, encoder_attention_mask=mask).sample
        return output[:, :LATENTS]

    def network(x: Tensor, time: float) -> Tensor:
        text = _text(images, x.dtype)
        off = evaluate(x, time, text["negative_prompt_embeds"]) if guidance > 1 else None
        return _guide(evaluate(x, time, text["prompt_embeds"]), off, guidance)

    return network


# Flow.


def _sd3(cls: str = "StableDiffusion3Pipeline") -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=SIZE, in_channels=LATENTS, out_channels=LATENTS, num_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=WIDTH, caption_projection_dim=16, pooled_projection_dim=WIDTH, pos_embed_max_size=SIZE,
    )  # fmt: skip
    names = ("text_encoder", "text_encoder_2", "text_encoder_3", "tokenizer", "tokenizer_2", "tokenizer_3")
    parts: dict[str, Any] = dict.fromkeys(names)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return getattr(diffusers, cls)(transformer=transformer, scheduler=scheduler, vae=_vae(), **parts)


def _sd3_network(pipe: Any, images: Sequence[int], guidance: float) -> Network:
    def evaluate(x: Tensor, time: float, text: Tensor, pooled: Tensor) -> Tensor:
        return pipe.transformer(x, encoder_hidden_states=text, pooled_projections=pooled, timestep=_rows(time, x)).sample

    def network(x: Tensor, time: float) -> Tensor:
        text, pooled = _text(images, x.dtype), _pooled(images, x.dtype)
        off = evaluate(x, time, text["negative_prompt_embeds"], pooled["negative_pooled_prompt_embeds"]) if guidance > 1 else None
        return _guide(evaluate(x, time, text["prompt_embeds"], pooled["pooled_prompt_embeds"]), off, guidance)

    return network


def _flux() -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        in_channels=4 * LATENTS, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=1,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    names = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True, max_shift=1.15)
    return diffusers.FluxPipeline(scheduler=scheduler, vae=_vae(), transformer=transformer, **dict.fromkeys(names))


def _flux_network(pipe: Any, images: Sequence[int], guidance: float) -> Network:
    """The distilled guidance of 3.5 is an input; `guidance` is the true one, a second evaluation."""
    half = SIZE // 2
    ids = torch.stack([torch.zeros(half * half), torch.arange(half * half) // half, torch.arange(half * half) % half], dim=1)

    def evaluate(x: Tensor, time: float, text: Tensor, pooled: Tensor) -> Tensor:
        return pipe.transformer(
            hidden_states=x, timestep=_rows(time, x).to(x.dtype) / 1000, guidance=torch.full((len(x),), 3.5), pooled_projections=pooled,
            encoder_hidden_states=text, txt_ids=torch.zeros(3, 3), img_ids=ids,
        ).sample  # fmt: skip

    def network(x: Tensor, time: float) -> Tensor:
        text, pooled = _text(images, x.dtype), _pooled(images, x.dtype)
        off = evaluate(x, time, text["negative_prompt_embeds"], pooled["negative_pooled_prompt_embeds"]) if guidance > 1 else None
        return _guide(evaluate(x, time, text["prompt_embeds"], pooled["pooled_prompt_embeds"]), off, guidance)

    return network


def _nothing(images: Sequence[int], dtype: torch.dtype) -> dict[str, Any]:
    return {}


def _class(images: Sequence[int], dtype: torch.dtype) -> dict[str, Any]:
    return {"class_labels": _labels(images)}


def _text_and_pooled(images: Sequence[int], dtype: torch.dtype) -> dict[str, Any]:
    return _text(images, dtype) | _pooled(images, dtype)


def _text_and_masks(images: Sequence[int], dtype: torch.dtype) -> dict[str, Any]:
    return _text(images, dtype) | _masks(images)


_pixel: dict[str, Any] = {"guidance_name": None, "shape": (3, SIZE, SIZE)}
_pixart_options: dict[str, Any] = {"use_resolution_binning": False, "height": SIZE, "width": SIZE, "negative_prompt": None}
# fmt: off
TINIES: dict[str, Tiny] = {tiny.name: tiny for tiny in (
    Tiny("DDPMPipeline", _ddpm, _nothing, _pixel_network, **_pixel),
    Tiny("DDIMPipeline", _ddim, _nothing, _pixel_network, **_pixel),
    Tiny("DiTPipeline", lambda: _dit(LATENTS), _class, _dit_network),
    Tiny("DiTPipeline, learned variance", lambda: _dit(2 * LATENTS), _class, _dit_network),
    Tiny("StableDiffusionPipeline", lambda: _sd("StableDiffusionPipeline"), _text, _sd_network),
    Tiny("StableDiffusionXLPipeline", lambda: _sdxl("StableDiffusionXLPipeline"), _text_and_pooled, _sdxl_network),
    Tiny("PixArtAlphaPipeline", lambda: _pixart("PixArtAlphaPipeline"), _text_and_masks, _pixart_network, options=_pixart_options),
    Tiny("PixArtSigmaPipeline", lambda: _pixart("PixArtSigmaPipeline"), _text_and_masks, _pixart_network, options=_pixart_options),
    Tiny("StableDiffusion3Pipeline", _sd3, _text_and_pooled, _sd3_network),
    Tiny("FluxPipeline", _flux, _text_and_pooled, _flux_network, guidance_name="true_cfg_scale", options={"height": SIZE, "width": SIZE}),
)}
EDITING: dict[str, Tiny] = {tiny.name: tiny for tiny in (
    Tiny("StableDiffusionImg2ImgPipeline", lambda: _sd("StableDiffusionImg2ImgPipeline"), _text, _sd_network),
    Tiny("StableDiffusionInpaintPipeline", lambda: _sd("StableDiffusionInpaintPipeline"), _text, _sd_network),
    Tiny("StableDiffusionXLImg2ImgPipeline", lambda: _sdxl("StableDiffusionXLImg2ImgPipeline"), _text_and_pooled, _sdxl_network),
    Tiny("StableDiffusion3Img2ImgPipeline", lambda: _sd3("StableDiffusion3Img2ImgPipeline"), _text_and_pooled, _sd3_network),
)}
# fmt: on
