"""CIFAR-10 from a folder of images, as tensors, with the split every bundled model keeps to.

The folder is laid out as train/CLASS/*.jpg and test/CLASS/*.jpg. The bundled models were trained on a JPEG copy (quality about 75, 4:2:0
chroma): not the lossless original, so their scores are not scores on CIFAR-10 proper.

Split    Of the 5,000 training images of each class, in the order of their names, the last 500 are set aside as `calibration` and never
         trained on: thresholds and calibrations use them. `train` is the other 45,000, `test` the 10,000 test images.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vis_accel.errors import DataError, UnknownNameError

__all__ = ["CLASSES", "SPLITS", "Images", "load_split"]

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SPLITS = ("train", "calibration", "test")
_CALIBRATION_PER_CLASS = 500


@dataclass(frozen=True)
class Images:
    """Images (uint8, n x 3 x 32 x 32) with labels (int64, n) and the sha256 of both."""

    pixels: Tensor
    labels: Tensor
    sha256: str

    def __len__(self) -> int:
        return len(self.pixels)


def load_split(folder: Path, split: str) -> Images:
    """Reads one split of the folder.

    Raises:
        UnknownNameError: no such split.
        DataError: a class folder that is missing or empty, an image that does not open or is not 32 x 32.
    """
    if split not in SPLITS:
        raise UnknownNameError.of("split of CIFAR-10", split, SPLITS)
    pixels, labels = [], []
    for label, name in enumerate(CLASSES):
        part = "test" if split == "test" else "train"
        paths = sorted(p for p in (folder / part / name).glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if len(paths) <= _CALIBRATION_PER_CLASS:
            message = f"{folder / part / name} holds {len(paths)} images; more than {_CALIBRATION_PER_CLASS} are wanted."
            raise DataError(message, hint="--data is the folder with train/CLASS/*.jpg and test/CLASS/*.jpg")
        if part == "train":
            paths = paths[-_CALIBRATION_PER_CLASS:] if split == "calibration" else paths[:-_CALIBRATION_PER_CLASS]
        pixels += [_read(path) for path in paths]
        labels += [label] * len(paths)
    stacked = torch.stack(pixels)
    digest = hashlib.sha256(stacked.numpy().tobytes() + bytes(labels)).hexdigest()
    return Images(stacked, torch.tensor(labels), digest)


def _read(path: Path) -> Tensor:
    import numpy
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=("JPEG", "PNG")) as image:
            array = numpy.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path} does not open as an image: {error}") from error
    if array.shape != (32, 32, 3):
        raise DataError(f"{path} is {array.shape[1]} x {array.shape[0]} pixels, not 32 x 32.")
    return torch.from_numpy(array).permute(2, 0, 1).contiguous()
