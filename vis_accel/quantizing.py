"""`quantize`: a recipe's rounded layers, calibrated on the recipe's own run, as a folder that `load`, `bench` and `generate` open.

quantize("cifar10-unet", "dpm(steps=10) + q-diffusion(weights=4)", Path("runs/w4"))
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from vis_accel.apply import accelerate
from vis_accel.errors import ConflictError, UsageError
from vis_accel.generation import Job
from vis_accel.method import Method
from vis_accel.networks import networks_of
from vis_accel.precision import saved
from vis_accel.recipe import Recipe
from vis_accel.zoo import MODELS, quantized
from vis_accel.zoo.opened import Placement, is_classifier, open_classifier, open_pipeline

__all__ = ["quantize"]

Progress = Callable[[str, int, int], None]


def quantize(
    model: str,
    recipe: Recipe | str,
    output: Path,
    *,
    job: Job | None = None,
    calibration: Path | None = None,
    placement: Placement | None = None,
    progress: Progress = lambda what, done, total: None,
) -> str:
    """Calibrates, rounds, and writes the folder.

    Args:
        model: a name or folder that `load` knows.
        recipe: with `int8` or `q-diffusion`; the rest of it is what these are calibrated in.
        output: the folder; what another run of this command left there is replaced.
        job: for pipelines, what is generated for the calibration.
        calibration: for classifiers, a folder of images.
        placement: threads, and whether pickles may be read.
        progress: receives what is being done, how much of it is, and how much there is.

    Returns:
        What the method reports of its layers.

    Raises:
        UsageError: a recipe that rounds nothing that could be saved, or an output folder that holds something else.
        ConflictError: a model that is quantized already.
    """
    parsed = Recipe.parse(recipe) if isinstance(recipe, str) else recipe
    method = _method(parsed)
    if quantized.is_quantized(model):
        raise ConflictError(f"{model} is quantized already.", hint=f"quantize its float model, {quantized.opened_as(model)[0]}")
    _refuse_foreign(output)
    target, run = _opened(model, job or Job(), calibration, placement or Placement())
    kept: Any = replace(method, keep_original=True, fresh=True) if hasattr(method, "keep_original") else replace(method, fresh=True)  # type: ignore[call-arg]
    plain = Recipe(kept if one is method else one for one in parsed.methods if one.family != "compile")  # which comes after calibration
    with accelerate(target, plain, calibration=run, progress=progress) as handle:
        told = str(handle.report()[method.name])
        view = _view(target)
        networks = networks_of(method, view, vae=getattr(method, "vae", False))
        found = saved.of_networks(method, parsed, networks, real=not getattr(method, "simulated", False), told=told)
    output.mkdir(parents=True, exist_ok=True)
    (output / quantized.INDEX).unlink(missing_ok=True)
    saved.write(found, output / saved.FILE)
    quantized.write(output, _model(model, output), str(parsed))
    return told


def _method(recipe: Recipe) -> Method:
    found = [method for method in recipe.methods if hasattr(method, "saved")]
    if not found:
        raise UsageError(f"The recipe {recipe} rounds nothing that could be saved.", hint="'dpm(steps=10) + int8', or q-diffusion")
    method: Any = found[0]
    if method.saved is not None:
        raise UsageError(f"{method} is from a folder already.", hint=f"leave out saved={method.saved!r}")
    if getattr(method, "activations", "static") == "dynamic":
        raise UsageError(f"{method} finds its scales in every call: there is nothing to calibrate and to save.", hint="int8")
    return found[0]


def _refuse_foreign(output: Path) -> None:
    if output.exists() and (not output.is_dir() or (any(output.iterdir()) and not (output / saved.FILE).is_file())):
        raise UsageError(f"{output} is there already, and not of this command.", hint="another --output")


def _opened(model: str, job: Job, calibration: Path | None, placement: Placement) -> tuple[Any, Any]:
    """The target, and what it is calibrated on."""
    if not is_classifier(model):
        if calibration is not None:
            raise UsageError("--calibration is for image classifiers; a pipeline is calibrated on images it makes.", hint="leave it out")
        opened = open_pipeline(model, job, placement)
        opened.job.check(opened.pipeline)
        return opened.pipeline, opened.job
    from vis_accel.classifier_bench import calibration_inputs
    from vis_accel.zoo.labelled import Preparation

    classifier = open_classifier(model, placement)
    return classifier.network, calibration_inputs(classifier, Preparation.of(classifier.network), calibration, skip_broken=False)


def _view(target: Any) -> Any:
    from torch import nn

    if isinstance(target, nn.Module):
        from vis_accel.vit_models.view import view

        return view(target)
    from vis_accel import pipelines

    return pipelines.view(target)


def _model(model: str, output: Path) -> str:
    """What the folder calls its model: a name, or the copy it gets."""
    place = Path(model).expanduser()
    if model in MODELS or not place.is_dir():
        return model
    shutil.rmtree(output / quantized.COPY, ignore_errors=True)
    shutil.copytree(place, output / quantized.COPY)
    return quantized.COPY
