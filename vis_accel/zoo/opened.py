"""A model ready to be run from the command line: loaded and placed; a pipeline silent, and with the job its card pins."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vis_accel.errors import UnknownNameError, UsageError
from vis_accel.generation import Job
from vis_accel.zoo.quantized import is_quantized, opened_as

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Opened", "OpenedClassifier", "Placement", "is_classifier", "open_classifier", "open_pipeline"]

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where and how a model is run.

    Attributes:
        device: None: a GPU if there is one.
        dtype: of the weights; None: as loaded.
        threads: on the CPU; None: as PyTorch chose.
        allow_pickle: load weights that can run code.
        random_weights: for timm/NAME: the architecture without its weights, for rows of speed alone.
        size: for timm/NAME: height and width of the images, in pixels; None: the model's own.
    """

    device: str | None = None
    dtype: str | None = None
    threads: int | None = None
    allow_pickle: bool = False
    random_weights: bool = False
    size: int | None = None


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


@dataclass(frozen=True)
class OpenedClassifier:
    """A loaded classifier.

    Attributes:
        name: of the model, or the network's class.
        network: in evaluation mode.
        sha256: of its weights.
        trained: whether its answers mean anything.
        classes: names of its classes, where they are known.
    """

    name: str
    network: nn.Module
    sha256: str
    trained: bool
    classes: tuple[str, ...] = ()


def is_classifier(model: Any) -> bool:
    """Whether `model`, a name, a folder or a loaded object, is a classifier; loads nothing. What is not known is taken for a pipeline."""
    if not isinstance(model, str):
        from torch import nn

        return isinstance(model, nn.Module)
    from vis_accel.zoo import MODELS

    if model in MODELS or model.startswith("timm/"):
        return model not in MODELS or MODELS[model].kind == "classifier"
    if is_quantized(model):
        return is_classifier(opened_as(model)[0])
    folder = Path(os.path.expanduser(model))
    described = (folder / "card.json").is_file() or (folder / "config.json").is_file()
    return described and not (folder / "model_index.json").is_file()


def open_classifier(model: Any, placement: Placement) -> OpenedClassifier:
    """Loads the classifier `model`, or takes a network that is loaded already as it is.

    Raises:
        UsageError: no classifier, a network in training mode, a device, dtype or size there is not.
        ModelError: weights that are missing, broken or unsafe.
    """
    import torch

    from vis_accel.eval.features import digest
    from vis_accel.zoo import MODELS, describe, load

    if not isinstance(model, str):
        _refuse_unfit(model, placement)
        return OpenedClassifier(type(model).__name__, model, digest(model), trained=True)
    if placement.dtype is not None and placement.dtype not in DTYPES:
        raise UnknownNameError.of("dtype", placement.dtype, DTYPES)
    if placement.size is not None and not model.startswith("timm/"):
        raise UsageError(f"A size is for timm/NAME; {model} takes images of its own size.", hint="leave out --size")
    if placement.threads is not None:
        torch.set_num_threads(placement.threads)
    network = load(
        model, allow_pickle=placement.allow_pickle, dtype=placement.dtype, random_weights=placement.random_weights,
        device=placement.device or ("cuda" if torch.cuda.is_available() else "cpu"),
    )  # fmt: skip
    if not isinstance(network, torch.nn.Module):
        raise UsageError(f"{model} is no image classifier.")
    if placement.size is not None:
        _resize(network, placement.size, model)
    if model in MODELS:
        card = describe(model)
        return OpenedClassifier(model, network, card.sha256, trained=True, classes=card.classes)
    return OpenedClassifier(model, network, digest(network), trained=not placement.random_weights)


def _refuse_unfit(network: nn.Module, placement: Placement) -> None:
    if any(module.training for module in network.modules()):
        raise UsageError(f"The {type(network).__name__} is in training mode.", hint="model.eval()")
    if placement != Placement():
        raise UsageError("A placement is for models given by name; this one is loaded and placed already.", hint="leave it out")


def _resize(network: Any, size: int, name: str) -> None:
    """Sets a timm network to square images of `size` pixels; one without a fixed size is left as it is."""
    if not hasattr(network, "set_input_size") or size < 1:
        return
    try:
        network.set_input_size(img_size=(size, size))
    except (AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"{name} cannot be set to images of {size} x {size} pixels: {reason}", hint="another --size") from error


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
    if placement.random_weights or placement.size is not None:
        option = "--random-weights" if placement.random_weights else "--size"
        raise UsageError(f"{option} is for image classifiers of timm; {model} is none.", hint="leave it out, or --model timm/NAME")
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
