"""`export`: a classifier written as ONNX or as a PyTorch exported program, folded first, and compared with the network it came from.

    export(load("timm/levit_256"), "levit.onnx", dynamic_batch=True)

Order    copy; evaluation mode; the recipe; timm's re-parameterisation, and batch norms folded into the convolutions before them
         (`vit_models.folding`); the exporter; the file, still in memory, is read back and run; only then is it written, whole or not
         at all.
Recipe   a network that a handle has changed is exported as it stands, in place: the changes may hold on to its own blocks, so a copy would
         be half the original. It is not folded then; give `recipe` instead, and the order above is kept.

Fused attention stays on: both forms take scaled_dot_product_attention, ONNX below opset 23 in parts.
Shapes   images B x C x H x W, normalised as the model wants them; logits B x classes.
"""

from __future__ import annotations

import hashlib
import io
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vis_accel.apply import accelerate
from vis_accel.errors import MissingDependencyError, NotApplicableError, RunError, UnknownNameError, UsageError, shown
from vis_accel.files import write_atomic
from vis_accel.recipe import Recipe
from vis_accel.vit_models.closeness import Closeness, close, closeness, logits
from vis_accel.vit_models.folding import Folding, copied, evaluating, fold, folded

__all__ = ["FORMATS", "Exported", "export", "image_size"]

Format = Literal["onnx", "torch"]
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}  # what files of a format are called
_OPSETS = range(18, 24)  # below, the exporter writes 18 and converts down, which often fails; above, not every onnxruntime reads it
_AGREE = 0.999  # share of images that must keep their class
_CLOSE_SHARE = 0.95  # under a recipe: share of images that must be close; in the others a tie between tokens was decided otherwise
_ONNX_BYTES = 2**31 - 2**20  # where a protocol buffer ends, with room for the graph


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written, and how near it is to the network.

    Attributes:
        path, format, bytes, sha256: of the file.
        model, recipe: the network's class, and what it was exported under.
        shape: of the images; under `dynamic_batch` the first number is an example.
        opset: of ONNX.
        folding: None: nothing was to be folded.
        images, n: "given" or "random", and how many were compared.
        difference, typical, spread, agreement: as in `Closeness`.
        seconds: all of it.
    """

    path: str
    format: Format
    bytes: int
    sha256: str
    model: str
    recipe: str
    shape: tuple[int, int, int, int]
    dynamic_batch: bool
    opset: int | None
    folding: Folding | None
    images: str
    n: int
    difference: float
    typical: float
    spread: float
    agreement: float
    seconds: float


@torch.no_grad()
def export(
    model: nn.Module,
    path: str | Path,
    *,
    format: Format = "onnx",
    recipe: Recipe | str | None = None,
    size: int | tuple[int, int] | None = None,
    batch: int = 1,
    dynamic_batch: bool = False,
    reparameterize: bool = True,
    opset: int | None = None,
    images: Tensor | None = None,
) -> Exported:
    """Writes `model` to `path`, if the file computes what the network does.

    Args:
        model: a classifier in float32 on the CPU; it is left as it is.
        path: where to.
        format: "onnx", by torch.onnx.export over an exported program, or "torch", by torch.export.save.
        recipe: put on the copy that is exported; token methods of fixed counts export.
        size: of the images in pixels, a side or (height, width); None: the model's own.
        batch: number of images a call of the file takes, exactly.
        dynamic_batch: it takes any number.
        reparameterize: fold first.
        opset: of ONNX; None: PyTorch's default.
        images: to compare on, n x C x H x W; None: 16 random ones.

    Raises:
        UsageError: an argument out of range, a model that is not in float32 or does not take such images.
        MissingDependencyError: "onnx" without its packages.
        RunError: the model cannot be exported, or the file does not agree with it; nothing is written then.
        OutputError: the file could not be written.
    """
    started, parsed = time.perf_counter(), Recipe.of(recipe or ())
    in_place = _changed(model)
    _check(model, format, batch, opset, parsed, in_place and (bool(parsed.methods) or size is not None))
    side = size or image_size(model)
    shape = (batch, _channels(model), *((side, side) if isinstance(side, int) else side))
    given = _images(images, shape)
    with evaluating(model) if in_place else nullcontext():
        network = _fitted(model if in_place else copied(model), given, resize=not in_place)
        whole, folding = folded(network, given) if reparameterize and not in_place else (network, None)
        network = network if parsed.methods else whole
        with accelerate(network, parsed) if parsed.methods else nullcontext():
            if parsed.methods and folding is not None and folding.norms:  # not before: trained parameters are those of the whole network
                network = fold(network, given)
            data, opset = _written(network, _rows(given, range(max(batch, 2 * dynamic_batch))), format, dynamic_batch, opset)
            sizes = (1, max(batch + 1, 16)) if dynamic_batch else (batch,)
            near = _compared(network, _reader(data, format), given, sizes, loose=in_place or bool(parsed.methods))
    write_atomic(path, data)
    return Exported(
        path=str(path), format=format, bytes=len(data), sha256=hashlib.sha256(data).hexdigest(), model=type(model).__name__,
        recipe="as it stands" if in_place else str(parsed), shape=shape, dynamic_batch=dynamic_batch, opset=opset, folding=folding,
        images="random" if images is None else "given", n=len(given), **near._asdict(), seconds=time.perf_counter() - started,
    )  # fmt: skip


def image_size(model: Any) -> tuple[int, int]:
    """Height and width of the images `model` was built for, or is used with.

    Raises:
        UsageError: it does not say.
    """
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    said = built or (getattr(model, "pretrained_cfg", None) or {}).get("input_size", ())[-2:]
    if not said:
        raise UsageError(
            f"{type(model).__name__} does not say what size of images it takes.", hint="size=224, on the command line --size 224"
        )
    return (int(said), int(said)) if isinstance(said, int) else (int(said[0]), int(said[1]))


def _check(model: nn.Module, format: str, batch: int, opset: int | None, recipe: Recipe, twice: bool) -> None:
    kinds = {tensor.dtype for tensor in model.parameters() if tensor.is_floating_point()} - {torch.float32}
    if format not in FORMATS:
        raise UnknownNameError.of("format of exported files", format, FORMATS)
    if batch < 1:
        raise UsageError(f"batch is the number of images a call takes and must be >= 1; got {batch}.")
    if opset is not None and (format != "onnx" or opset not in _OPSETS):
        raise UsageError(f"opset is of ONNX and one of {_OPSETS[0]} to {_OPSETS[-1]}; got {opset} for format {format!r}.")
    if kinds:
        raise UsageError(f"A model is exported in float32; this one has weights in {sorted(map(str, kinds))}.", hint="model.float()")
    if twice:
        raise UsageError("This model is under a recipe: it is exported as it stands.", hint="remove its handle, and give recipe= and size=")
    if late := [method.name for method in recipe.methods if method.family in ("compile", "precision")]:
        message = f"{late[0]} is of the machine that runs a model, and is not written into a file."
        raise UsageError(message, hint="leave it out; the program that runs the file has a precision of its own")
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            try:
                import_module(package)
            except ImportError as error:
                raise MissingDependencyError(f"ONNX needs the package {package}.", hint="pip install 'vis-accel[onnx]'") from error


def _changed(model: nn.Module) -> bool:
    return any("forward" in vars(part) or part._forward_hooks or part._forward_pre_hooks for part in model.modules())


def _channels(model: nn.Module) -> int:
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    return 3 if first is None else first.in_channels


def _images(images: Tensor | None, shape: Sequence[int]) -> Tensor:
    if images is None:
        return torch.randn(16, *shape[1:], generator=torch.Generator().manual_seed(0))
    if images.ndim != 4 or not len(images) or images.shape[1:] != tuple(shape[1:]):
        raise UsageError(f"images must be n x {' x '.join(map(str, shape[1:]))}, as the model's; got {tuple(images.shape)}.")
    return images.float()


def _fitted(network: Any, images: Tensor, *, resize: bool) -> nn.Module:
    """`network`, set to the size of `images` where timm can do that, and seen to take them."""
    try:
        if resize and hasattr(network, "set_input_size") and tuple(images.shape[2:]) != image_size(network):
            network.set_input_size(img_size=tuple(images.shape[2:]))
        logits(network, images[:1])
    except NotApplicableError:
        raise
    except (RuntimeError, AssertionError, ValueError, IndexError, ZeroDivisionError) as error:
        message = f"{type(network).__name__} does not take images of {' x '.join(map(str, images.shape[1:]))}: {shown(str(error), 150)}"
        raise UsageError(message, hint="leave out size; some models have their size fixed when they are built") from error
    return network  # type: ignore[no-any-return]


# The file


def _written(network: nn.Module, example: Tensor, format: str, dynamic: bool, opset: int | None) -> tuple[bytes, int | None]:
    """The file's bytes, and the opset of ONNX."""
    batches: Any = ({0: torch.export.Dim("batch", min=1, max=2**16)},) if dynamic else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter's own doings
            program = torch.export.export(network, (example,), dynamic_shapes=batches)
            if format == "torch":
                buffer = io.BytesIO()
                torch.export.save(program, buffer)
                return buffer.getvalue(), None
            more: dict[str, Any] = {"input_names": ["images"], "output_names": ["logits"], "custom_translation_table": _translations()}
            made: Any = torch.onnx.export(program, dynamo=True, opset_version=opset, verbose=False, **more)
    except Exception as error:  # each of the exporters has its own tree of them
        first = next((line for line in str(error).splitlines() if line.strip()), "")
        message = f"{type(network).__name__} cannot be exported: {type(error).__name__}: {shown(first, 200)}"
        raise RunError(message, hint="a fixed batch, or another format; what depends on the data of an image does not export") from error
    if made.model_proto.ByteSize() > _ONNX_BYTES:
        raise RunError(f"The model has {made.model_proto.ByteSize() / 1e9:.1f} GB; one ONNX file holds 2 GB.", hint="format='torch'")
    return made.model_proto.SerializeToString(), int(made.model_proto.opset_import[0].version)


def _translations() -> dict[Any, Any]:
    """Operations that the exporter does not translate: a stable sort, which TopK is, since equal values keep their order there."""
    import onnxscript

    op: Any = onnxscript.opset18  # its annotations know tensors only, and here values of the graph are meant

    def stable_sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        size = op.Gather(op.Shape(x), op.Constant(value_ints=[dim]))
        return op.TopK(x, size, axis=dim, largest=int(descending), sorted=1)

    return {torch.ops.aten.sort.stable: stable_sort}


def _reader(data: bytes, format: str) -> Callable[[Tensor], Tensor]:
    """Runs a file that was just made; others' exported programs are not to be read, since that unpickles."""
    if format == "torch":
        program = torch.export.load(io.BytesIO(data)).module()
        return lambda x: program(x)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])


def _rows(images: Tensor, indices: Sequence[int]) -> Tensor:
    """Images by index, from the first again after the last."""
    return images[[index % len(images) for index in indices]]


def _compared(network: nn.Module, read: Callable[[Tensor], Tensor], images: Tensor, sizes: Sequence[int], *, loose: bool) -> Closeness:
    """Runs all images through both, in batches of `sizes` (the last one again and again); `loose`: a recipe chooses tokens.

    Raises:
        RunError: the file computes something else.
    """
    pairs, start = list[tuple[Tensor, Tensor]](), 0
    while start < len(images):
        size = sizes[min(len(pairs), len(sizes) - 1)]
        x = _rows(images, range(start, start + size))
        fresh = min(size, len(images) - start)  # a fixed batch is filled up by images that were counted before
        pairs.append((read(x)[:fresh], logits(network, x)[:fresh]))
        start += size
    got, want = (torch.cat(part) for part in zip(*pairs, strict=True))
    near = closeness(got, want)
    if len(want) > 1 and near.spread == 0:
        message = f"{type(network).__name__} gives all {len(want)} images the same logits, so there is nothing to compare a file by."
        raise RunError(message, hint="a head that was just made is all zeros: load weights, or train it")
    share = _CLOSE_SHARE if loose else 1.0
    equal = float(close(got, want).float().mean())
    if not (near.agreement >= _AGREE and equal >= share):
        raise RunError(
            f"The file does not compute what {type(network).__name__} does, and was not written: of {len(images)} images {equal:.1%} have "
            f"equal logits, up to rounding, and {near.agreement:.1%} the same class; the worst is {near.difference:.2g} of the largest.",
            hint="another opset or format",
        )
    return near
