"""Images -> features: the network a Frechet distance is measured with, wrapped so that nothing about it is left to chance.

    images, 8-bit or float in [0, 1]  ->  the 8-bit grid (what a saved image holds)  ->  the network's size (bilinear, antialiased)
                                      ->  the network's normalisation  ->  features, float32

The wrapper always stays in evaluation mode, builds no graph and switches autocast off: a half-precision feature rounds the distance to
three digits. It has the whole-number attribute `num_features` that torchmetrics trusts, so it can be handed to its metrics too.
A score is only comparable within one feature network: hence a name and a hash of weights and preparation.

Shapes   B images, C channels, H W pixels, d features, n images in all.
Cost     `extract` keeps n x d float32 numbers (twice, for a moment, when it joins the batches) and never an image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel.errors import DataError, UsageError

__all__ = ["FeatureNet", "as_eight_bit", "digest", "extract", "gather_features"]


class FeatureNet(nn.Module):
    """A network that turns images into features.

    Args:
        net: module with float32 weights whose `entry` maps images (B x C x H x W) to features (B x d, or B x d x 1 x 1).
        name: what its scores are called: FID[name].
        num_features: d. Stated, not asked of the network: timm networks carry a `num_features` that is not what they return.
        entry: the method of `net` that returns features, "forward" or, for a classifier, often "forward_features".
        size: (H, W) the network takes; None: images are passed on in their own size.
        mean, std: normalisation per channel, in [0, 1]; none by default (a network may do its own).
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        name: str,
        num_features: int,
        entry: str = "forward",
        size: tuple[int, int] | None = None,
        mean: tuple[float, ...] = (),
        std: tuple[float, ...] = (),
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or any(s <= 0 for s in std):
            raise UsageError(f"mean and std need one number per channel each, std above 0; got {mean} and {std}.")
        if not callable(getattr(net, entry, None)):
            raise UsageError(f"{type(net).__name__} has no method {entry!r}.")
        wrong = sorted({str(p.dtype) for p in net.parameters() if p.dtype != torch.float32})
        if wrong:
            raise UsageError(f"A feature network computes in float32; {name} has weights in {', '.join(wrong)}.", hint="net.float()")
        self.net = net
        self.name = name
        self.num_features = num_features
        self.entry = entry
        self.size = size
        self.mean = mean
        self.std = std
        self.eval()

    def train(self, mode: bool = True) -> FeatureNet:
        """Stays in evaluation mode, whatever `mode` says."""
        super().train(False)
        return self

    @property
    def device(self) -> torch.device:
        """Where the network's tensors are."""
        tensors = [*self.net.parameters(), *self.net.buffers()]
        return tensors[0].device if tensors else torch.device("cpu")

    @property
    def sha256(self) -> str:
        """Hash of every weight and buffer, and of how images are prepared. Reads all weights: keep the answer."""
        return digest(self.net, entry=self.entry, size=self.size, mean=self.mean, std=self.std, num_features=self.num_features)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Maps images (B x C x H x W, uint8 or float in [0, 1]) to features (B x d, float32).

        Raises:
            DataError: images of another shape, type or range, or features that are not finite.
            UsageError: a network that returns another number of features than it was declared with.
        """
        self.eval()  # the wrapped module may have been put into training mode behind our back
        x = as_eight_bit(images)
        with torch.autocast(x.device.type, enabled=False):
            if self.size is not None and tuple(x.shape[-2:]) != self.size:
                x = functional.interpolate(x, size=self.size, mode="bilinear", antialias=True, align_corners=False)
            if self.mean:
                x = (x - x.new_tensor(self.mean).view(-1, 1, 1)) / x.new_tensor(self.std).view(-1, 1, 1)
            network = self.net if self.entry == "forward" else getattr(self.net, self.entry)
            features: Tensor = network(x)
        if features.numel() != len(images) * self.num_features:
            raise UsageError(f"{self.name} was declared with {self.num_features} features; it returned {tuple(features.shape)}.")
        features = features.reshape(len(images), self.num_features).float()
        if not features.isfinite().all():
            raise DataError(f"{self.name} gave features that are not finite: NaN or infinite pixels, or broken weights.")
        return features


def as_eight_bit(images: Tensor) -> Tensor:
    """Images (B x C x H x W) as float32 in [0, 1], each value one of k / 255: what is left of an image once it has been saved.

    Raises:
        DataError: not four dimensions, neither uint8 nor floating point, NaN, or values that betray another range such as [-1, 1].
    """
    if images.ndim != 4:
        raise DataError(f"Images are B x C x H x W; got {tuple(images.shape)}.")
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise DataError(f"Images are uint8, or floating point in [0, 1]; got {images.dtype}.")
    if not images.numel():
        return images.float()
    low, high = (float(value) for value in images.aminmax())
    if not (low >= -0.25 and high <= 1.25):  # also true of NaN; a little overshoot of a sampler is clamped, as saving would
        raise DataError(f"Floating-point images lie in [0, 1]; these reach from {low:.3g} to {high:.3g}.", hint="(images + 1) / 2")
    return (images.float().clamp(0, 1) * 255).round() / 255


def digest(net: nn.Module, **preparation: object) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and buffers of `net`, and over `preparation` (JSON values)."""
    sha = hashlib.sha256(json.dumps(preparation, sort_keys=True).encode())
    for name, tensor in sorted(net.state_dict().items()):
        flat = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {flat.dtype} {tuple(flat.shape)}".encode())
        sha.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def extract(net: FeatureNet, image_batches: Iterable[Tensor]) -> Tensor:
    """Features (n x d, float32, on the CPU) of a stream of image batches, in their order. No batch is kept.

    Raises:
        DataError: no images, or what `FeatureNet.forward` refuses.
    """
    rows = []
    device = net.device
    for batch in image_batches:
        rows.append(net(batch.to(device)).cpu())
    if not sum(len(row) for row in rows):
        raise DataError("There are no images to take features of.")
    return torch.cat(rows)


def gather_features(features: Tensor, indices: Tensor, accelerator: Any) -> Tensor:
    """All processes' features (n x d), in the order of their image indices, on every process.

    Args:
        features: this process's features (m x d); m may differ between processes.
        indices: the number of each image (m, whole numbers from 0), which is also what its seed was counted by.
        accelerator: an `accelerate.Accelerator`.

    Raises:
        DataError: an index that comes twice: two processes made the same image.
    """
    padded = accelerator.pad_across_processes(features.to(accelerator.device).contiguous())
    numbers = accelerator.pad_across_processes(indices.to(accelerator.device).long().contiguous(), pad_index=-1)
    rows, order = accelerator.gather(padded).cpu(), accelerator.gather(numbers).cpu()
    rows, order = rows[order >= 0], order[order >= 0]
    if len(order.unique()) != len(order):
        raise DataError("Two processes made the same image: an index came twice.")
    gathered: Tensor = rows[order.argsort()]
    return gathered
