"""Recipe `cifar10-unet`: a stock, unconditional DDPMPipeline in pixels.

Network  diffusers' UNet2DModel, the network of Ho et al. (2020, arXiv:2006.11239) made small: 32, 64 and 128 channels at 32, 16 and 8
         pixels, one residual block a level down and two up, self-attention in the middle. At 32 pixels memory traffic costs more than
         arithmetic, so the first level is narrow.
Loss     epsilon-prediction on the paper's linear schedule of 1000 steps, with min-SNR-5 weights (Hang et al. 2023, arXiv:2303.09556):
         weight min(snr, 5) / snr on the squared error of the noise, time steps uniform.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.training import TrainingConfig
from vis_accel.zoo.cifar10 import Images

__all__ = ["UNetTask", "build", "default_config", "scheduler"]

_SNR_LIMIT = 5.0
_WIDTHS = (32, 64, 128)


def build(widths: tuple[int, ...] = _WIDTHS) -> Any:
    """A fresh network; its last convolution is zero, so that it starts by predicting no noise."""
    from diffusers import UNet2DModel

    levels = len(widths)
    model = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=widths, norm_num_groups=8,
        attention_head_dim=min(64, widths[-1]), down_block_types=("DownBlock2D",) * levels, up_block_types=("UpBlock2D",) * levels,
    )  # fmt: skip
    nn.init.zeros_(model.conv_out.weight)
    nn.init.zeros_(model.conv_out.bias)
    return model


def scheduler() -> Any:
    """The pipeline's own sampler: ancestral, on the noise schedule the network is trained with."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="epsilon")


def default_config(steps: int = 3_600) -> TrainingConfig:
    """About ninety minutes on one core."""
    return TrainingConfig(
        steps=steps, batch_size=64, learning_rate=2e-3, optimizer="muon", weight_decay=0.01, warmup=0.0375, decay=0.5, ema_decay=0.999,
        channels_last=True, evaluate_every=steps // 6,
    )  # fmt: skip


class UNetTask:
    """Denoising of the training images and their mirror images.

    Args:
        train: what is learnt from.
        calibration: what the held-out loss is measured on.
    """

    name = "cifar10-unet"

    def __init__(self, train: Images, calibration: Images) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = build()
        self.train, self.held_out = train, calibration.pixels[::5]
        self.examples = len(train)
        self.alphas_cumprod = scheduler().alphas_cumprod

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        pixels = self.train.pixels[indices]
        mirrored = torch.rand(len(indices), generator=generator) < 0.5
        return self._noised(torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels), generator)

    def _noised(self, pixels: Tensor, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Noised images, time steps, the noise, and the weight of each example."""
        clean = pixels.float() / 127.5 - 1
        times = torch.randint(0, len(self.alphas_cumprod), (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator)
        signal = self.alphas_cumprod[times][:, None, None, None]
        snr = (signal / (1 - signal)).flatten()
        noised = signal.sqrt() * clean + (1 - signal).sqrt() * noise
        return noised.contiguous(memory_format=torch.channels_last), times, noise, snr.clamp(max=_SNR_LIMIT) / snr

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        noised, times, noise, weight = batch
        output = model(noised, times, return_dict=False)[0]
        loss: Tensor = (weight * (output.float() - noise).square().mean(dim=(1, 2, 3))).mean()
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The loss on held-out images at fixed noise and times."""
        device = next(model.parameters()).device
        batch = tuple(part.to(device) for part in self._noised(self.held_out, torch.Generator().manual_seed(1)))
        parts = [self.loss(model, *rows) for rows in zip(*(part.split(250) for part in batch), strict=True)]
        return {"held_out_loss": torch.stack(parts).mean().item()}

    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes the pipeline as a diffusers folder in bfloat16, and a 10 x 10 grid of samples at fixed seeds."""
        from diffusers import DDIMScheduler, DDPMPipeline

        from vis_accel.generation import Job
        from vis_accel.zoo.export import save_grid, save_pipeline

        quick: Any = DDPMPipeline(unet=model, scheduler=DDIMScheduler.from_config(scheduler().config))  # 1000 steps take minutes
        save_grid(quick, folder / "grid.png", Job(steps=50))
        save_pipeline(DDPMPipeline(unet=model, scheduler=scheduler()), folder / "pipeline")
