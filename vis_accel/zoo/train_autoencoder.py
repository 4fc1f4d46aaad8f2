"""Recipe `cifar10-autoencoder`: the AutoencoderKL of the bundled latent diffusion model, 32 x 32 pixels to 8 x 8 latents of 4 channels.

Loss     mean absolute error + mean squared error of the pixels, both on the scale [-1, 1], plus a small Kullback-Leibler term that keeps
         the latents near a standard normal (Kingma & Welling 2013, arXiv:1312.6114, eq. 10; weighted as in Rombach et al. 2022,
         arXiv:2112.10752, sec. 3.1). No adversarial and no perceptual term: the only feature net at hand is the one that scores.
Cost     about 30 MMACs to encode and 115 MMACs to decode an image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.training import TrainingConfig
from vis_accel.zoo.cifar10 import Images

__all__ = ["AutoencoderTask", "build", "default_config", "encode"]

_KL_WEIGHT = 1e-4  # per latent number; the pixel terms are means over pixels


def build() -> Any:
    """A fresh AutoencoderKL with two halvings."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3, out_channels=3, sample_size=32, latent_channels=4, layers_per_block=1, norm_num_groups=8,
        block_out_channels=(32, 48, 64), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        mid_block_add_attention=False,
    )  # fmt: skip


def default_config(epochs: float = 3) -> TrainingConfig:
    """About 9 minutes on 2 cores."""
    steps = int(epochs * (45_000 // 64))
    return TrainingConfig(
        steps=steps, batch_size=64, learning_rate=2e-3, warmup=0.05, decay=0.6, ema_decay=0.998, channels_last=True,
        evaluate_every=steps // 4,
    )  # fmt: skip


class AutoencoderTask:
    """Reconstruction of flipped and unflipped images."""

    name = "cifar10-autoencoder"

    def __init__(self, train: Images, test: Images) -> None:
        torch.manual_seed(0)
        self.autoencoder = build()
        self.model: nn.Module = _RoundTrip(self.autoencoder)
        self.train, self.test = train, test
        self.examples = len(train)

    def batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        images = to_network(self.train.pixels[indices])
        flip = torch.rand(len(indices), generator=generator) < 0.5
        images = torch.where(flip[:, None, None, None], images.flip(-1), images).contiguous(memory_format=torch.channels_last)
        return images, torch.randn(len(indices), 4, 8, 8, generator=generator)

    def loss(self, model: Callable[..., Any], /, *batch: Any) -> Tensor:
        images, noise = batch
        decoded, mean, log_variance = (part.float() for part in model(images, noise))
        error = decoded - images
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        total: Tensor = error.abs().mean() + error.square().mean() + _KL_WEIGHT * divergence
        return total

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Round-trip PSNR in dB: the mean over 1,000 test images, with the posterior's mean as latent and the result on the 8-bit grid."""
        values, device = [], next(model.parameters()).device
        for pixels in self.test.pixels[torch.arange(0, len(self.test), max(1, len(self.test) // 1000))].split(250):
            images = to_network(pixels).to(device)
            decoded = model(images, torch.zeros(len(images), 4, 8, 8, device=device))[0].cpu()
            error = (to_pixels(decoded).float() - pixels.float()) / 255
            values.append(-10 * error.square().mean(dim=(1, 2, 3)).clamp(min=1e-10).log10())
        return {"psnr": torch.cat(values).mean().item()}

    @torch.no_grad()
    def export(self, model: nn.Module, folder: Path) -> None:
        """Writes the AutoencoderKL as a diffusers folder, its scaling factor set so that the training latents have unit variance."""
        autoencoder: Any = model.autoencoder
        latents = torch.cat([autoencoder.encode(to_network(part)).latent_dist.mean for part in self.train.pixels[::9].split(250)])
        autoencoder.register_to_config(scaling_factor=1 / latents.std().item())
        autoencoder.save_pretrained(folder / "vae")


class _RoundTrip(nn.Module):
    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log_variance = self.autoencoder.quant_conv(self.autoencoder.encoder(images)).chunk(2, dim=1)
        log_variance = log_variance.clamp(-30.0, 20.0)
        latent = mean + (0.5 * log_variance).exp() * noise
        return self.autoencoder.decoder(self.autoencoder.post_quant_conv(latent)), mean, log_variance


def to_network(pixels: Tensor) -> Tensor:
    """uint8 pixels to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_pixels(images: Tensor) -> Tensor:
    """Float images in [-1, 1] to uint8, rounded."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def encode(autoencoder: Any, pixels: Tensor) -> Tensor:
    """Scaled latents (float32, n x 4 x 8 x 8) of uint8 pixels: the posterior's mean times the scaling factor."""
    means = [autoencoder.encode(to_network(part)).latent_dist.mean for part in pixels.split(250)]
    scaled: Tensor = torch.cat(means) * autoencoder.config.scaling_factor
    return scaled
