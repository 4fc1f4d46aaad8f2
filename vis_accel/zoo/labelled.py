"""Images with labels for measuring a classifier: a folder of classes, or the few that ship with a bundled model.

    DIR/test/CLASS/*, DIR/val/CLASS/* or DIR/CLASS/*        class names in alphabetical order are labels 0, 1, 2 ...
    models/NAME/images.safetensors                          the original JPEG files one after another, their ends, their labels
    models/NAME/calibration.safetensors                     likewise, of the training images that were set aside: to calibrate on

Images are taken by turns: the first of each class by name, then the second of each, so that the first n are spread evenly over the
classes, whatever n is. They are prepared by timm's own evaluation transform for the network, to 8-bit tensors.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.errors import DataError, UsageError, shown
from vis_accel.files import write_atomic
from vis_accel.zoo import bundled

__all__ = ["BUNDLED_IMAGES", "CALIBRATION_IMAGES", "ImageSet", "Preparation", "Prepared", "bundled_images", "folder_images", "pack"]

BUNDLED_IMAGES = "images.safetensors"
CALIBRATION_IMAGES = "calibration.safetensors"
_SPLITS = ("test", "val", "validation")
_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
_KEPT_BYTES = 2**30  # prepared images are kept in memory up to that much, and prepared again for each row beyond it


@dataclass(frozen=True)
class ImageSet:
    """Images that can be read, in turns over the classes.

    Attributes:
        name: what a record calls them.
        classes: names, in the order of the labels.
        labels: one for each image.
        sha256: of their names and sizes, or of the file they are in.
        read: the bytes of image i.
        place: what to call image i in a message.
    """

    name: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    sha256: str
    read: Callable[[int], bytes]
    place: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)

    def first(self, n: int) -> ImageSet:
        """The first n, spread evenly over the classes.

        Raises:
            UsageError: there are not that many.
        """
        if n > len(self):
            raise UsageError(f"{self.name} has {len(self):,} images; {n:,} were asked for.", hint=f"--samples {len(self)}")
        return replace(self, labels=self.labels[:n])


def folder_images(folder: Path, classes: int, names: Sequence[str] = ()) -> ImageSet:
    """The images of a folder of classes.

    Args:
        folder: see the module's text.
        classes: how many the network tells apart.
        names: of its classes in the order of its outputs, where they are known; else the folders' names in alphabetical order.

    Raises:
        DataError: no folder, no classes, another number of classes, other names, a class without images.
    """
    place = next((folder / split for split in _SPLITS if (folder / split).is_dir()), folder)
    try:
        found = sorted(path.name for path in place.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise DataError(f"Cannot read {place}: {error.strerror or error}.", hint=_wanted()) from error
    if not found:
        raise DataError(f"{place} holds no folder of a class.", hint=_wanted())
    if len(found) != classes:
        raise DataError(
            f"{place} has {len(found)} class folders ({_few(found)}), and the model tells {classes} classes apart.",
            hint="a folder for each class of the model, and no other",
        )
    if names and set(found) != set(names):
        lacking = [name for name in names if name not in found]
        raise DataError(f"{place} lacks the classes {_few(lacking)} of the model.", hint=f"the folders must be named {', '.join(names)}")
    ordered = list(names) or found
    by_class = [_files(place / name) for name in ordered]
    turns = [(path, label) for turn in zip_longest(*by_class) for label, path in enumerate(turn) if path is not None]
    paths = [path for path, _ in turns]
    listing = "\n".join(f"{path.relative_to(place)} {path.stat().st_size}" for path in paths)
    return ImageSet(
        name=f"{place.parent.name}/{place.name}" if place != folder else place.resolve().name,
        classes=tuple(ordered),
        labels=tuple(label for _, label in turns),
        sha256=hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest(),
        read=lambda index: paths[index].read_bytes(),
        place=lambda index: str(paths[index]),
    )


def bundled_images(model: str, file: str = BUNDLED_IMAGES) -> ImageSet | None:
    """The images that ship with a bundled model, to measure it on or to calibrate on; None if none do.

    Raises:
        ModelError: the file is damaged.
    """
    if model not in bundled.MODELS or not (path := bundled.folder(model) / file).is_file():
        return None
    from safetensors.torch import load_file

    card = bundled.describe(model)
    bundled.verify(bundled.folder(model), card.files)
    stored = load_file(path)
    blob, ends, labels = stored["bytes"].numpy().tobytes(), stored["ends"].tolist(), stored["labels"].tolist()
    starts = [0, *ends[:-1]]
    return ImageSet(
        name=f"{model}/{path.name}",
        classes=card.classes,
        labels=tuple(labels),
        sha256=card.files[path.name],
        read=lambda index: blob[starts[index] : ends[index]],
        place=lambda index: f"image {index} of {path}",
    )


def pack(images: ImageSet, path: Path) -> None:
    """Writes the images as they are, JPEG or PNG, into one file that `bundled_images` reads."""
    from safetensors.torch import save

    files = [images.read(index) for index in range(len(images))]
    ends = torch.tensor([len(file) for file in files]).cumsum(0)
    blob = torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8)
    write_atomic(path, save({"bytes": blob, "ends": ends, "labels": torch.tensor(images.labels)}))


@dataclass(frozen=True)
class Preparation:
    """From a file's image to what a network takes: timm's evaluation transform, then its mean and standard deviation.

    Attributes:
        size: height and width of its input.
        mean, std: per channel, on the scale [0, 1].
        transform: a PIL image to uint8, 3 x H x W.
    """

    size: tuple[int, int]
    mean: Tensor
    std: Tensor
    transform: Callable[[Any], Tensor]

    @classmethod
    def of(cls, network: nn.Module, size: int | None = None) -> Preparation:
        """As the network's `pretrained_cfg` says, or timm's defaults; for square images of `size` pixels, if it is given."""
        from timm.data import create_transform, resolve_data_config

        wanted = {} if size is None else {"img_size": size}
        config = resolve_data_config(wanted, pretrained_cfg=getattr(network, "pretrained_cfg", None) or {}, model=network)
        transform = create_transform(**config, is_training=False, normalize=False)
        mean, std = (torch.tensor(config[name]).view(1, -1, 1, 1) for name in ("mean", "std"))
        return cls(tuple(config["input_size"][-2:]), mean, std, transform)

    def normalised(self, pixels: Tensor, like: Tensor) -> Tensor:
        """Images (uint8, B x 3 x H x W) as the network's input, with the dtype and on the device of `like`."""
        return ((pixels.float() / 255 - self.mean) / self.std).to(like.device, like.dtype)


class Prepared:
    """Images of a set, prepared for a network.

    All of them are read and prepared once at the start, so that a broken one is found before anything is measured.

    Args:
        images: what to prepare.
        preparation: how.
        skip_broken: leave out images that do not open, instead of refusing.

    Raises:
        DataError: an image that does not open; with skip_broken, none that does.
    """

    def __init__(self, images: ImageSet, preparation: Preparation, *, skip_broken: bool = False) -> None:
        self._images, self._transform = images, preparation.transform
        each = 3 * preparation.size[0] * preparation.size[1]
        self._kept: dict[int, Tensor] = {}
        broken, good = list[str](), list[int]()
        for index in range(len(images)):
            try:
                pixels = self._prepared(index)
            except DataError as error:
                if not skip_broken:
                    raise
                broken.append(error.message)
                continue
            good.append(index)
            if (len(self._kept) + 1) * each <= _KEPT_BYTES:
                self._kept[index] = pixels
        if not good:
            raise DataError(f"None of the {len(images)} images of {images.name} opens; the first: {broken[0]}")
        self._good = good
        self.broken = tuple(broken)
        self.labels = torch.tensor([images.labels[index] for index in good])
        self.name = images.name + (f" without {len(broken)} of {len(images)} that do not open" if broken else "")

    def __len__(self) -> int:
        return len(self._good)

    def pixels(self, start: int, end: int) -> Tensor:
        """Images start to end, exclusive: uint8, B x 3 x H x W."""
        chosen = self._good[start:end]
        return torch.stack([self._kept[index] if index in self._kept else self._prepared(index) for index in chosen])

    def _prepared(self, index: int) -> Tensor:
        from PIL import Image

        place = self._images.place(index)
        try:
            with Image.open(io.BytesIO(self._images.read(index)), formats=_FORMATS) as image:
                return self._transform(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # all that Pillow raises for a broken file
            hint = "mend or remove it, or leave such images out: --skip-broken"
            raise DataError(f"{place} does not open as an image: {shown(str(error), 100)}", hint=hint) from error


def _files(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _ENDINGS and not path.name.startswith("."))
    if not found:
        raise DataError(f"{folder} holds no images.", hint=f"files ending in {', '.join(_ENDINGS)}")
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(chain((shown(name, 24) for name in names[:5]), ["..."] * (len(names) > 5)))


def _wanted() -> str:
    return "--data is a folder with test/CLASS/*, val/CLASS/* or CLASS/*"
