"""Which network this is: the hash of its weights, by which what was made for a model finds it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["identity"]


def identity(model: nn.Module) -> str:
    """SHA-256 over names, shapes and values of all parameters and buffers, rounded to bfloat16: a model loaded in it is the same model."""
    import torch

    sha = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().cpu().contiguous()
        flat = flat.to(torch.bfloat16) if flat.is_floating_point() else flat
        sha.update(f"{name} {tuple(flat.shape)}".encode())
        sha.update(flat.reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()
