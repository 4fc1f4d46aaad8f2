"""`vis-accel train`: the recipes that made the bundled models, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vis_accel.errors import UnknownNameError, UsageError
from vis_accel.training import Task, TrainingConfig, TrainingResult

if TYPE_CHECKING:
    from torch import nn

__all__ = ["RECIPES", "train"]

RECIPES = ("cifar10-autoencoder", "cifar10-dit", "cifar10-features", "cifar10-unet", "cifar10-vit")


def train(
    name: str,
    data: Path,
    output: Path,
    *,
    autoencoder: Path | None = None,
    options: Mapping[str, object] | None = None,
    resume: bool = False,
    threads: int | None = None,
    compile: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> TrainingResult:
    """Trains a bundled model.

    Args:
        name: one of `RECIPES`.
        data: folder with train/CLASS/*.jpg and test/CLASS/*.jpg.
        output: folder for checkpoint, curve, grid and the exported model.
        autoencoder: for cifar10-dit: a trained vae folder; None: the bundled one.
        options: fields of `TrainingConfig` to change.
        resume: go on from the checkpoint in `output`, or, if there is none, from the weights that come with the package (their average;
            optimiser, step count and learning rate begin anew).
        threads: on the CPU.
        compile: whether the step is compiled, where the recipe says so.
        report: receives progress.

    Raises:
        UnknownNameError: no such recipe.
        UsageError: options that make no sense, a checkpoint of another configuration.
        DataError: a folder that is not laid out so.
    """
    import torch

    from vis_accel import training

    if name not in RECIPES:
        raise UnknownNameError.of("training recipe", name, RECIPES)
    if autoencoder is not None and name != "cifar10-dit":
        raise UsageError(f"--autoencoder belongs to cifar10-dit, not to {name}.")
    if threads is not None:
        torch.set_num_threads(threads)
    if resume and (output / training.HISTORY).exists():
        raise UsageError(f"{name} in {output} is finished: there is nothing to resume.", hint="give another --output to train again")
    task, config = _recipe(name, data, autoencoder)
    config = replace(config, **dict(options or {}))  # type: ignore[arg-type]
    config = replace(config, compile=config.compile and compile)
    if resume and not (output / training.CHECKPOINT).exists():
        _start_from_bundle(name, task.model)
        report(f"there is no checkpoint in {output}: starting from the weights of the bundled {name}")
    return training.train(task, config, output=output, resume=resume, report=report)


def _recipe(name: str, data: Path, autoencoder: Path | None) -> tuple[Task, TrainingConfig]:
    """What a recipe trains, and how."""
    from vis_accel.zoo import load, train_autoencoder, train_dit, train_features, train_unet, train_vit
    from vis_accel.zoo.cifar10 import load_split

    images = load_split(data, "train")
    if name == "cifar10-features":
        return train_features.FeaturesTask(images, load_split(data, "test")), train_features.default_config()
    if name == "cifar10-autoencoder":
        return train_autoencoder.AutoencoderTask(images, load_split(data, "test")), train_autoencoder.default_config()
    if name == "cifar10-unet":
        return train_unet.UNetTask(images, load_split(data, "calibration")), train_unet.default_config()
    if name == "cifar10-vit":
        return train_vit.ViTTask(images, load_split(data, "test"), load("cifar10-features")), train_vit.default_config()
    return train_dit.DiTTask(_autoencoder(autoencoder), images, load_split(data, "calibration")), train_dit.default_config()


def _start_from_bundle(name: str, model: nn.Module) -> None:
    """Gives `model` the shipped weights of what the recipe `name` trains."""
    from vis_accel.zoo import load

    parts = {"cifar10-autoencoder": ("cifar10-dit", "vae"), "cifar10-dit": ("cifar10-dit", "transformer"), "cifar10-unet": (name, "unet")}
    bundle, part = parts.get(name, (name, None))
    shipped = load(bundle)
    target: nn.Module = getattr(model, "autoencoder", getattr(model, "vit", model))  # what a task wraps for its loss
    target.load_state_dict((getattr(shipped, part) if part else shipped).state_dict())


def _autoencoder(folder: Path | None) -> Any:
    from vis_accel.zoo import load

    if folder is None:
        return load("cifar10-dit").vae
    from diffusers import AutoencoderKL

    if not (folder / "config.json").exists():
        message = f"{folder} is no autoencoder folder: it has no config.json."
        raise UsageError(message, hint="vis-accel train cifar10-autoencoder writes one, named vae")
    return AutoencoderKL.from_pretrained(folder, use_safetensors=True).eval()
