"""Folders of images laid out by class: which files there are, which part each belongs to, and which of them open.

    DIR/train/CLASS/*    taught
    DIR/val/CLASS/*      evaluated while training, and chosen by; else a share of train/ where one is asked for, else test/
    DIR/test/CLASS/*     evaluated once, at the end

Classes are the names of the folders in alphabetical order, the same in every part. A share of train/ that is set aside is the last images
of each class in the order of their names, as with the bundled models.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vis_accel.errors import DataError, UsageError, either

__all__ = ["SUFFIXES", "Folder", "Part", "scan", "without"]

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_HINT = "--data is the folder with train/CLASS/*.jpg, and val/CLASS/*.jpg or test/CLASS/*.jpg"


@dataclass(frozen=True)
class Part:
    """Files with their labels.

    Attributes:
        name: in words: "train", "val", "test", "10% of train".
        paths: of the images.
        labels: index of each image's class.
    """

    name: str
    paths: tuple[Path, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)


@dataclass(frozen=True)
class Folder:
    """What a data folder holds.

    Attributes:
        root: the folder.
        classes: names, in the order of the labels.
        train: what is taught.
        validation: what is evaluated while training.
        test: what is evaluated at the end; None where the test images serve as validation already.
        skipped: images that did not open and were left out.
    """

    root: Path
    classes: tuple[str, ...]
    train: Part
    validation: Part
    test: Part | None
    skipped: int = 0

    @property
    def sha256(self) -> str:
        """Of names and sizes of all files, part by part: whether it is the same data, without reading it."""
        sha = hashlib.sha256()
        for part in (self.train, self.validation, self.test):
            for path, label in zip(part.paths, part.labels, strict=True) if part else ():
                sha.update(f"{path.relative_to(self.root).as_posix()} {label} {path.stat().st_size}\n".encode())
        return sha.hexdigest()


def scan(root: Path, *, validation_share: float | None = None) -> Folder:
    """Lists the images of a folder; opens none.

    Args:
        root: the folder.
        validation_share: of each class of train/ that is set aside; for folders without val/.

    Raises:
        DataError: no such folder, a part or a class without images, parts of different classes, fewer than two classes.
        UsageError: a share beside a val/ folder, or one that leaves a class without images.
    """
    if not (root / "train").is_dir():
        raise DataError(f"There is no folder {root / 'train'}.", hint=_HINT)
    classes = _classes(root / "train")
    if len(classes) < 2:
        raise DataError(f"{root / 'train'} has one class, {classes[0]}: there is nothing to tell apart.", hint=_HINT)
    train, test = _part(root, "train", classes), _part(root, "test", classes) if (root / "test").is_dir() else None
    if (root / "val").is_dir():
        if validation_share is not None:
            raise UsageError(
                f"{root / 'val'} is there: --validation-share would set aside a second one.", hint="leave out --validation-share"
            )
        return Folder(root, classes, train, _part(root, "val", classes), test)
    if validation_share is not None:
        return Folder(root, classes, *_shared(train, validation_share, classes), test)
    if test is None:
        raise DataError(f"{root} has neither val/ nor test/.", hint="--validation-share 0.1 sets a tenth of train/ aside")
    return Folder(root, classes, train, test, None)


def without(part: Part, broken: Iterable[tuple[Path, str]]) -> Part:
    """`part` without the files that do not open."""
    gone = {path for path, _ in broken}
    return _paired(part.name, [(path, label) for path, label in zip(part.paths, part.labels, strict=True) if path not in gone])


def _classes(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if not names:
        raise DataError(f"{folder} is empty: it has no folder for a class.", hint=_HINT)
    return names


def _part(root: Path, name: str, classes: tuple[str, ...]) -> Part:
    found = _classes(root / name)
    if found != classes:
        extra, lacking = sorted(set(found) - set(classes)), sorted(set(classes) - set(found))
        words = [f"{root / name} has {len(found)} classes and {root / 'train'} has {len(classes)}"]
        words += [f"only {name} has {', '.join(extra[:5])}"] if extra else []
        words += [f"{name} lacks {', '.join(lacking[:5])}"] if lacking else []
        raise DataError("; ".join(words) + ".")
    paths: list[Path] = []
    labels: list[int] = []
    for label, kind in enumerate(classes):
        files = sorted(path for path in (root / name / kind).iterdir() if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
        if not files:
            raise DataError(f"{root / name / kind} is empty: it has no file ending in {either(SUFFIXES)}.")
        paths += files
        labels += [label] * len(files)
    return Part(name, tuple(paths), tuple(labels))


def _shared(train: Part, share: float, classes: tuple[str, ...]) -> tuple[Part, Part]:
    """`train` in two: what is taught, and the last images of each class."""
    kept: list[tuple[Path, int]] = []
    aside: list[tuple[Path, int]] = []
    for label, name in enumerate(classes):
        files = [path for path, other in zip(train.paths, train.labels, strict=True) if other == label]
        count = round(share * len(files))
        if not 0 < count < len(files):
            raise UsageError(
                f"--validation-share {share:g} sets aside {count} of the {len(files)} images of {name}; both parts need at least one."
            )
        kept += [(path, label) for path in files[:-count]]
        aside += [(path, label) for path in files[-count:]]
    return _paired("train", kept), _paired(f"{share:.0%} of train", aside)


def _paired(name: str, files: list[tuple[Path, int]]) -> Part:
    return Part(name, tuple(path for path, _ in files), tuple(label for _, label in files))
