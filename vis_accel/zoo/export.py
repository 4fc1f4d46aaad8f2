"""Writing trained networks the way the bundled models are kept: safetensors, half precision, atomically; and pictures of what they make."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vis_accel.files import write_atomic

if TYPE_CHECKING:
    from vis_accel.generation import Job

__all__ = ["contact_sheet", "save_grid", "save_module", "save_pipeline"]


def save_module(module: nn.Module, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes the state of `module` to `path`, everything of two dimensions or more in `dtype` and vectors in float32."""
    from safetensors.torch import save

    def half(tensor: Tensor) -> Tensor:
        return (tensor.to(dtype) if tensor.is_floating_point() and tensor.ndim > 1 else tensor).contiguous()

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, save({name: half(tensor) for name, tensor in module.state_dict().items()}, {"format": "pt"}))


def save_pipeline(pipeline: Any, folder: Path) -> None:
    """Writes a pipeline as a diffusers folder in bfloat16, without the paths its parts were loaded from.

    The pipeline is in float32 again afterwards, its weights rounded. Text encoders stay as they are: by default transformers loads the
    type in the file and diffusers float32, and the two would not meet.
    """
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module) and not _of_transformers(part)]
    for part in parts:
        part.to(torch.bfloat16)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for part in parts:
        part.to(torch.float32)
    for path in folder.glob("*/config.json"):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            write_atomic(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def _of_transformers(part: nn.Module) -> bool:
    return type(part).__module__.startswith("transformers.")


def save_grid(pipeline: Any, path: Path, job: Job, *, rows: int = 10, columns: int = 10) -> None:
    """Draws images 0 .. rows * columns - 1 of `job`, row by row, as a PNG."""
    from vis_accel.generation import generate

    pipeline.set_progress_bar_config(disable=True)
    contact_sheet(generate(pipeline, job, range(rows * columns)), path, columns=columns)


def contact_sheet(images: Tensor, path: Path, *, columns: int, scale: int = 2) -> None:
    """Writes images (uint8, n x 3 x H x W) as one PNG, `columns` to a row, each pixel `scale` x `scale`, a pixel of white between them."""
    import io

    from PIL import Image
    from torchvision.utils import make_grid

    sheet = make_grid(images, nrow=columns, padding=1, pad_value=255).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    png = io.BytesIO()
    Image.fromarray(sheet.permute(1, 2, 0).contiguous().numpy()).save(png, format="PNG", optimize=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, png.getvalue())
