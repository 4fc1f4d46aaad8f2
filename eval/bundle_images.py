"""Ships a few labelled images with the bundled classifier, so that `vis-accel bench --model cifar10-vit` has something to be right about.

    python eval/bundle_images.py --data DIR         DIR holds test/CLASS/*.jpg

Takes the first 50 test images of each class by name, as the files are: no pixel is changed. They were never trained on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from vis_accel.zoo import describe
from vis_accel.zoo.bundled import FOLDER, seal
from vis_accel.zoo.labelled import BUNDLED_IMAGES, folder_images, pack

MODEL = "cifar10-vit"
PER_CLASS = 50


def main(data: Path) -> None:
    """Writes the file and seals the folder with it."""
    classes = describe(MODEL).classes
    images = folder_images(data, len(classes), classes).first(PER_CLASS * len(classes))
    path = FOLDER / MODEL / BUNDLED_IMAGES
    pack(images, path)
    seal(path.parent)
    print(f"{path}: {len(images)} images, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with test/")
    main(parser.parse_args().data)
