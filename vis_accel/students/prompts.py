"""Prompts in the place of classes: a text-to-image teacher knows as many "classes" as it was given prompts, and the empty prompt for none.

Pipelines   StableDiffusionPipeline, whose UNet2DConditionModel takes nothing but the time and the encoded prompt. Not SDXL and others,
            which take sizes and pooled texts too.
Encoded     once, by the pipeline's own text encoder; class i is row i of the table, and the last row is the empty prompt.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel.errors import DataError, NotApplicableError, UsageError

__all__ = ["encoded", "read"]

_PIPELINES = ("StableDiffusionPipeline",)
_BATCH = 32


def read(path: Path | None) -> tuple[str, ...]:
    """The prompts in a file, one a line; none without a file.

    Raises:
        DataError: a file that cannot be read, or that has none.
    """
    if path is None:
        return ()
    try:
        found = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}", hint="--prompts FILE: UTF-8, one prompt a line") from error
    if not found:
        raise DataError(f"{path} has no prompts.", hint="one prompt a line")
    return found


@torch.no_grad()
def encoded(pipeline: Any, prompts: tuple[str, ...]) -> Tensor | None:
    """The table of encoded prompts ((n + 1) x tokens x width), the empty one last; None for a pipeline that takes no text.

    Raises:
        UsageError: prompts for a pipeline without text.
        NotApplicableError: a text-to-image pipeline without prompts, without its text encoder, or that takes the guidance scale already.
    """
    name = type(pipeline).__name__
    if name not in _PIPELINES:
        if prompts:
            raise UsageError(f"{name} takes no prompts as a teacher.", hint=f"leave out --prompts; known: {', '.join(_PIPELINES)}")
        return None
    if not prompts:
        raise NotApplicableError(f"{name} is a teacher for lcm-lora, of prompts.", hint="--method lcm-lora --prompts FILE")
    if pipeline.text_encoder is None or pipeline.tokenizer is None:
        raise NotApplicableError(f"{name} has no text encoder: its prompts cannot be encoded.")
    if pipeline.unet.config.time_cond_proj_dim is not None:
        raise NotApplicableError(f"The network of this {name} takes the guidance scale already: it is a student itself.")
    rows = (*prompts, "")
    parts = [pipeline.encode_prompt(list(rows[at : at + _BATCH]), pipeline.device, 1, False)[0] for at in range(0, len(rows), _BATCH)]
    return torch.cat(parts).float()
