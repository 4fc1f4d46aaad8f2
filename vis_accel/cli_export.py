"""`vis-accel export`: a network written to a file and compared with it; `vis-accel list models`: what networks there are."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vis_accel.errors import DataError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from vis_accel.exporting import Exported

__all__ = ["list_models", "run"]

SUFFIXES = {".onnx": "onnx", ".pt2": "torch"}
_TELLING = 1e-4  # logits that lie less apart between images, relative to the largest, are near what rounding in float32 does


def run(
    *,
    model: str,
    output: Path,
    recipe: str | None,
    random_weights: bool,
    size: int | None,
    batch: int,
    dynamic_batch: bool,
    reparameterize: bool,
    opset: int | None,
    data: Path | None,
    samples: int,
    threads: int | None,
    format: str,
    allow_pickle: bool,
) -> None:
    """Loads, exports, prints what was written and how near it is.

    Raises:
        UsageError: before anything heavy is loaded, for a file name of no known kind, numbers that make no sense, a recipe that is none.
        DataError: images that are missing or broken.
    """
    kind = SUFFIXES.get(output.suffix.lower())
    if kind is None:
        raise UsageError(f"--output is a file that ends in .onnx, or in .pt2 for PyTorch; got {str(output)!r}.", hint="--output model.onnx")
    for name, value in (("--batch", batch), ("--samples", samples), ("--size", 1 if size is None else size)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1; got {value}.")
    from vis_accel.recipe import Recipe

    parsed = None if recipe is None else Recipe.parse(recipe)
    paths = None if data is None else _paths(data, samples)
    import torch
    from torch import nn

    from vis_accel.exporting import export
    from vis_accel.vit_models.families import register
    from vis_accel.zoo import load

    if threads is not None:
        torch.set_num_threads(threads)
    register(model)
    network: Any = load(model, random_weights=random_weights, allow_pickle=allow_pickle)
    if not isinstance(network, nn.Module):
        raise UsageError(f"{model} is a pipeline; only classifiers are exported.", hint="--model cifar10-vit, or timm/NAME")
    images = None if paths is None else _images(paths, network, size)
    found = export(
        network, output, format=kind, recipe=parsed, size=size, batch=batch, dynamic_batch=dynamic_batch,  # type: ignore[arg-type]
        reparameterize=reparameterize, opset=opset, images=images,
    )  # fmt: skip
    if format == "json":
        typer.echo(json.dumps(asdict(found), indent=1))
    else:
        typer.echo(found.path if format == "quiet" else "\n".join(_lines(found)))


def list_models(format: str) -> None:
    """Prints the bundled models and the families of edge vision transformers."""
    from vis_accel.vit_models.families import FAMILIES
    from vis_accel.zoo.bundled import MODELS

    if format == "json":
        bundled = {name: {"kind": entry.kind, "summary": entry.summary} for name, entry in MODELS.items()}
        typer.echo(json.dumps({"bundled": bundled, "families": {name: asdict(family) for name, family in FAMILIES.items()}}, indent=1))
        return
    if format == "quiet":
        typer.echo("\n".join([*MODELS, *(f"timm/{family.example}" for family in FAMILIES.values())]))
        return
    typer.echo("bundled, with weights")
    for name, entry in MODELS.items():
        typer.echo(f"  {name:18} {entry.kind:11} {entry.summary}")
    typer.echo("\nfamilies of edge vision transformers, as timm/NAME")
    for name, family in FAMILIES.items():
        typer.echo(f"  {name:18} {family.names:21} {family.summary}  [{family.paper}]")
        typer.echo(f"{'':21}example  timm/{family.example}; takes methods of {' and '.join(family.takes)}")
        typer.echo(f"{'':21}needs    {family.needs()}")
        typer.echo(f"{'':21}tokens   stay: {family.why_grid}; instead: {family.instead}")
    typer.echo("\nAny other timm/NAME loads too; a plain vision transformer (vit_*, deit_*) also takes the methods on tokens.")


def _paths(folder: Path, samples: int) -> list[Path]:
    """Up to `samples` images below `folder`, evenly over their sorted paths: with a folder a class, evenly over the classes."""
    kinds = {".png", ".jpg", ".jpeg", ".webp"}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in kinds)
    if not found:
        raise DataError(f"{folder} holds no images to compare on.", hint=f"--data takes a folder with {', '.join(sorted(kinds))} files")
    count = min(samples, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def _images(paths: list[Path], network: Any, size: int | None) -> Tensor:
    """The images as the network wants them: timm's evaluation transform, to `size` if given."""
    import torch
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    from vis_accel.exporting import image_size

    side = (size, size) if size else image_size(network)
    transform = create_transform(**{**resolve_data_config({}, model=network), "input_size": (3, *side)})
    tensors = []
    for path in paths:
        try:
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                tensors.append(transform(image.convert("RGB")))
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} does not open as an image: {error}", hint="move it away") from error
    return torch.stack(tensors)


def _lines(found: Exported) -> list[str]:
    """The report for people."""
    channels = " x ".join(map(str, found.shape[1:]))
    batch = "any batch" if found.dynamic_batch else f"batch {found.shape[0]}"
    kind = f"ONNX, opset {found.opset}" if found.format == "onnx" else "PyTorch exported program"
    lines = [f"{found.path}: {kind}, {found.bytes / 1e6:.1f} MB, {found.model}, images {channels}, {batch}"]
    if found.recipe != "none":
        lines.append(f"  recipe     {found.recipe}")
    if found.folding is not None and found.folding.norms:
        fold = found.folding
        lines.append(
            f"  folded     batch norms {fold.norms} -> {fold.reparameterized} by timm -> {fold.left}; moves logits by {fold.difference:.1e}"
        )
    lines.append(
        f"  compared   {found.n} {found.images} images with PyTorch: logits differ by {found.difference:.1e} of the largest at worst, "
        f"{found.typical:.1e} typically, by {found.spread:.1e} between images; same class for {found.agreement:.1%}"
    )
    if found.n > 1 and found.spread < _TELLING:
        lines.append("  note       the logits hardly depend on the image (weights that were never trained?): the comparison says little")
    return lines
