"""A pipeline ready to be run from the command line: loaded, placed, silent, and with the job its card pins."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from vis_accel.errors import UnknownNameError, UsageError
from vis_accel.generation import Job

__all__ = ["Opened", "Placement", "open_pipeline"]

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how a model is run.

    Attributes:
        device: None: a GPU if there is one.
        dtype: of the weights; None: as loaded.
        threads: on the CPU; None: as PyTorch chose.
        allow_pickle: load weights that can run code.
    """

    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    allow_pickle: bool = False


@dataclass(frozen=True)
class Opened:
    """A loaded pipeline.

    Attributes:
        name: of the model, or the pipeline's class.
        pipeline: the stock diffusers pipeline.
        sha256: of its weights.
        job: the one asked for, completed by what the model's card pins.
    """

    name: str
    pipeline: Any
    sha256: str
    job: Job


def open_pipeline(model: Any, job: Job, placement: Placement) -> Opened:
    """Loads `model`, or takes a pipeline that is loaded already as it is.

    Raises:
        UsageError: a model that is no pipeline, a device or dtype there is not.
        ModelError: weights that are missing, broken or unsafe.
    """
    import torch

    from vis_accel.eval.features import digest
    from vis_accel.pipelines import view
    from vis_accel.zoo import MODELS, describe, load

    if not isinstance(model, str):
        return Opened(type(model).__name__, model, digest(view(model).denoiser), job)
    if placement.dtype is not None and placement.dtype not in DTYPES:
        raise UnknownNameError.of("dtype", placement.dtype, DTYPES)
    if placement.threads is not None:
        torch.set_num_threads(placement.threads)
    device = placement.device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = None if placement.dtype is None else getattr(torch, placement.dtype)
    with _silence():
        pipeline = load(model, allow_pickle=placement.allow_pickle, dtype=dtype)
    if not hasattr(pipeline, "scheduler"):
        pipelines = [name for name, entry in MODELS.items() if entry.kind == "pipeline"]
        raise UsageError(f"{model} is no diffusion pipeline.", hint=f"bundled pipelines: {', '.join(pipelines)}")
    try:
        pipeline.to(device)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(f"The model cannot be put on {device!r}: {str(error).splitlines()[0]}", hint="--device cpu") from error
    pipeline.set_progress_bar_config(disable=True)
    if model not in MODELS:
        return Opened(model, pipeline, digest(view(pipeline).denoiser), job)
    card = describe(model)
    open_fields = {name: value for name, value in card.job.items() if getattr(job, name) in (None, ())}
    return Opened(model, pipeline, card.sha256, replace(job, **open_fields))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """No progress bar of diffusers' own: the command line has its one."""
    from diffusers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
