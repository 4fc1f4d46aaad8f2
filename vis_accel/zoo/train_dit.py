"""Recipe `cifar10-dit`: a stock, class-conditional DiTPipeline on the latents of `cifar10-autoencoder`.

Network  diffusers' DiTTransformer2DModel (Peebles & Xie 2022, arXiv:2212.09748), 192 wide, 8 deep, patch 2: 16 tokens.
         `DiTPipeline` writes 1000 for the null class, so the class tables have 1001 rows; rows 10..999 are zero.
Loss     v-prediction (Salimans & Ho 2022, arXiv:2202.00512) with min-SNR-5 weights (Hang et al. 2023, arXiv:2303.09556):
         weight min(snr, 5) / (snr + 1) on the squared error of v, time steps uniform.
Dropout  of the label happens in the batch, one draw an image: the network's own would draw once per block, since each block has its own
         class table.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.training import TrainingConfig
from vis_accel.zoo.cifar10 import CLASSES, Images
from vis_accel.zoo.train_autoencoder import encode

__all__ = ["NULL_CLASS", "DiTTask", "build", "default_config", "scheduler"]

NULL_CLASS = 1000
_LABEL_DROPOUT = 0.1
_SNR_LIMIT = 5.0


def build(*, width: int = 192, depth: int = 8) -> Any:
    """A fresh transformer, its modulations and last layer zero, so that each block starts as the identity (the paper's adaLN-Zero)."""
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel(
        num_attention_heads=width // 64, attention_head_dim=64, num_layers=depth, in_channels=4, out_channels=4, sample_size=8,
        patch_size=2, num_embeds_ada_norm=1000,
    )  # fmt: skip
    for block in model.transformer_blocks:
        nn.init.zeros_(block.norm1.linear.weight)
        nn.init.zeros_(block.norm1.linear.bias)
        embedder = block.norm1.emb.class_embedder
        embedder.dropout_prob = 0.0  # see Dropout above
        nn.init.normal_(embedder.embedding_table.weight, std=0.02)
        embedder.embedding_table.weight.data[len(CLASSES) : NULL_CLASS].zero_()
    for layer in (model.proj_out_1, model.proj_out_2):
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    return model


def scheduler() -> Any:
    """The pipeline's own sampler: DDIM, no clipping, on the noise schedule the network is trained with."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000, beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing",
    )  # fmt: skip


def default_config(steps: int = 3_200) -> TrainingConfig:
    """About forty minutes on one core, with the other one busy."""
    return TrainingConfig(
        steps=steps,
        batch_size=128,
        learning_rate=8e-4,
        warmup=0.03,
        decay=0.5,
        ema_decay=0.9995,
        weight_decay=0.01,
        evaluate_every=steps // 5,
    )


class DiTTask:
    """Denoising of cached latents; the latents of the flipped images are examples of their own."""

    name = "cifar10-dit"

    def __init__(self, autoencoder: Any, train: Images, calibration: Images) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = build()
        self.autoencoder = autoencoder
        self.latents = torch.cat([encode(autoencoder, train.pixels), encode(autoencoder, train.pixels.flip(-1))])
        self.labels = torch.cat([train.labels, train.labels])
        self.held_out = encode(autoencoder, calibration.pixels[::5]), calibration.labels[::5]
        self.examples = len(self.latents)
        self.alphas_cumprod = scheduler().alphas_cumprod

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        count = len(indices)
        labels = torch.where(torch.rand(count, generator=generator) < _LABEL_DROPOUT, NULL_CLASS, self.labels[indices])
        return (*self._noised(self.latents[indices], generator), labels)

    def _noised(self, latents: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noised latents, time steps, the target v, and the weight of each example."""
        times = torch.randint(0, len(self.alphas_cumprod), (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        signal = self.alphas_cumprod[times][:, None, None, None]
        alpha, sigma = signal.sqrt(), (1 - signal).sqrt()
        snr = (signal / (1 - signal)).flatten()
        return alpha * latents + sigma * noise, times, alpha * noise - sigma * latents, snr.clamp(max=_SNR_LIMIT) / (snr + 1)

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        noised, times, target, weight, labels = batch
        output = model(noised, timestep=times, class_labels=labels, return_dict=False)[0]
        loss: Tensor = (weight * (output.float() - target).square().mean(dim=(1, 2, 3))).mean()
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The loss on held-out latents at fixed noise and times."""
        latents, labels = self.held_out
        device = next(model.parameters()).device
        batch = [part.to(device) for part in (*self._noised(latents, torch.Generator().manual_seed(1)), labels)]
        parts = [self.loss(model, *rows) for rows in zip(*(part.split(250) for part in batch), strict=True)]
        return {"held_out_loss": torch.stack(parts).mean().item()}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes the whole pipeline as a diffusers folder in bfloat16, and a 10 x 10 grid of samples at fixed seeds."""
        from diffusers import DiTPipeline

        from vis_accel.generation import Job
        from vis_accel.zoo.export import save_grid, save_pipeline

        names = dict(enumerate(CLASSES))
        pipeline: Any = DiTPipeline(transformer=model, vae=self.autoencoder, scheduler=scheduler(), id2label=names)
        pipeline.register_to_config(id2label=names)  # its constructor does not, and the names would be lost with the folder
        by_row = tuple(label for label in range(10) for _ in range(10))
        save_grid(pipeline, folder / "grid.png", Job(class_labels=by_row, guidance_scale=2.0, steps=50))
        save_pipeline(pipeline, folder / "pipeline")
