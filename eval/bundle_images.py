"""Ships a few labelled images with the bundled classifier: some to be right about, and some to calibrate on.

    python eval/bundle_images.py --data DIR         DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg

images.safetensors       the first 50 test images of each class by name, so that `vis-accel bench --model cifar10-vit` has a score
calibration.safetensors  the last 10 training images of each class, of the 500 that no training has seen: for the scales of `int8`

The files are taken as they are: no pixel is changed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from vis_accel.zoo import describe
from vis_accel.zoo.bundled import FOLDER, seal
from vis_accel.zoo.labelled import BUNDLED_IMAGES, CALIBRATION_IMAGES, ImageSet, folder_images, pack

MODEL = "cifar10-vit"
MEASURED, CALIBRATED = 50, 10  # of each class


def main(data: Path) -> None:
    """Writes the files and seals the folder with them."""
    classes = describe(MODEL).classes
    tests, trains = (folder_images(data / split, len(classes), classes) for split in ("test", "train"))
    for images, name in ((tests.first(MEASURED * len(classes)), BUNDLED_IMAGES), (_last(trains, CALIBRATED), CALIBRATION_IMAGES)):
        path = FOLDER / MODEL / name
        pack(images, path)
        print(f"{path}: {len(images)} images, {path.stat().st_size:,} bytes")
    seal(FOLDER / MODEL)


def _last(images: ImageSet, count: int) -> ImageSet:
    """The last `count` of each class by name, class after class by turns."""
    classes, each = len(images.classes), len(images) // len(images.classes)  # as many of each: the set is CIFAR-10
    chosen = [turn * classes + label for turn in range(each - count, each) for label in range(classes)]
    labels = tuple(images.labels[index] for index in chosen)
    return replace(images, labels=labels, read=lambda i: images.read(chosen[i]), place=lambda i: images.place(chosen[i]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    main(parser.parse_args().data)
