"""Writing a trained network the way the bundled models are kept: safetensors, half precision, atomically."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from vis_accel.files import write_atomic

__all__ = ["save_module"]


def save_module(module: nn.Module, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes the state of `module` to `path`, floating-point matrices in `dtype` and all vectors and statistics in float32."""
    from safetensors.torch import save

    def half(tensor: torch.Tensor) -> torch.Tensor:
        return (tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim > 1 else tensor).contiguous()

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save({name: half(tensor) for name, tensor in module.state_dict().items()}, {"format": "pt"}))
