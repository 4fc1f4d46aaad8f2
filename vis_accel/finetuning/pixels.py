"""Images as tensors: decoded once into memory where they fit, batch by batch from the disk where they do not.

Every image is turned upright by its EXIF tag, scaled so that its shorter side is `side` pixels, and cut to the square in its middle.
When all images of a part are squares of one size, no larger than `side`, they are kept as they are and enlarged on the fly: CIFAR-10
then takes 150 MB whatever the size trained at. Batches are the same bits from memory and from the disk.

Shapes   a batch is uint8, B x 3 x side x side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from vis_accel.errors import DataError
from vis_accel.finetuning.data import Part

__all__ = ["MEMORY", "Pixels", "broken_error", "headers", "read_image", "read_size", "stored_side"]

MEMORY = 4 * 2**30  # bytes a part may take in memory; beyond that it stays on the disk
_NAMED = 5  # broken images named in an error

T = TypeVar("T")


Broken = list[tuple[Path, str]]  # files that do not open, with the reason


class Pixels:
    """The images of one part.

    Args:
        part: which; its headers are sound.
        side: of the square, in pixels.
        workers: threads that decode.
        memory: bytes it may take.

    Attributes:
        part: without the images that turned out not to open. On the disk only headers are known beforehand: there, all of it.
        broken: those images.
    """

    def __init__(self, part: Part, side: int, *, workers: int = 4, memory: int = MEMORY) -> None:
        self.side, self.broken = side, Broken()
        self.stored: Tensor | None = None
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self.part = self._decoded(part) if 3 * side * side * len(part) <= memory else part
        self.labels = torch.tensor(self.part.labels)
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self._ahead: tuple[tuple[int, ...], Future[Tensor]] | None = None

    def __len__(self) -> int:
        return len(self.part)

    def batch(self, indices: Tensor) -> Tensor:
        """The images `indices`.

        Raises:
            DataError: an image on the disk that is cut off or damaged, by name.
        """
        if self.stored is not None:
            return self.stored[indices]
        wanted = tuple(indices.tolist())
        if self._ahead is not None and self._ahead[0] == wanted:
            return self._ahead[1].result()
        return self._read(wanted)

    def prefetch(self, indices: Tensor) -> None:
        """Starts decoding a batch that will be asked for next; does nothing when the images are in memory."""
        if self.stored is None:
            wanted = tuple(indices.tolist())
            self._ahead = (wanted, self._reader.submit(self._read, wanted))

    def _read(self, indices: Sequence[int]) -> Tensor:
        return torch.stack(list(self.pool.map(lambda index: read_image(self.part.paths[index], self.side), indices)))

    def _decoded(self, part: Part) -> Part:
        """Fills the memory, and returns the part that opened."""
        stored = torch.empty(len(part), 3, self.side, self.side, dtype=torch.uint8)
        kept: list[int] = []
        for index, found in enumerate(self.pool.map(lambda path: _tried(read_image, path, self.side), part.paths)):
            if isinstance(found, DataError):
                self.broken.append((part.paths[index], found.message))
            else:
                stored[len(kept)] = found
                kept.append(index)
        self.stored = stored[: len(kept)]
        return Part(part.name, tuple(part.paths[index] for index in kept), tuple(part.labels[index] for index in kept))


def headers(part: Part, *, workers: int = 4) -> tuple[set[tuple[int, int]], Broken]:
    """The sizes (width and height) that occur, and the files whose headers are broken."""
    with ThreadPoolExecutor(workers) as pool:
        found = list(pool.map(lambda path: _tried(read_size, path), part.paths))
    broken = [(path, size.message) for path, size in zip(part.paths, found, strict=True) if isinstance(size, DataError)]
    return {size for size in found if not isinstance(size, DataError)}, broken


def stored_side(sizes: set[tuple[int, int]], size: int, *, room: float) -> int:
    """Side at which to keep images that are trained at `size`: larger by `room`, or their own where all are equal squares no larger.

    Args:
        sizes: that occur.
        size: in pixels.
        room: factor that leaves random crops something to choose from.
    """
    if len(sizes) == 1:
        (width, height), *_ = sizes
        if width == height and width <= size:
            return width
    return round(size * room)


def broken_error(broken: Broken, total: int) -> DataError:
    """The error for images that do not open: how many of how many, and the first of them."""
    names = "; ".join(reason for _, reason in broken[:_NAMED])
    more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    message = f"{len(broken)} of {total} images do not open: {names}{more}"
    return DataError(message, hint="mend or delete them, or --skip-broken leaves them out")


def read_image(path: Path, side: int) -> Tensor:
    """One image as uint8, 3 x side x side.

    Raises:
        DataError: it does not open, or is cut off.
    """
    import numpy
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened).convert("RGB")
            if image.size != (side, side):
                image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
            return torch.from_numpy(numpy.array(image)).permute(2, 0, 1).contiguous()
    except Exception as error:  # decoders of many formats, each with errors of its own
        raise DataError(f"{path} does not open as an image: {type(error).__name__}: {error}") from error


def read_size(path: Path) -> tuple[int, int]:
    """Width and height of an image, from its header.

    Raises:
        DataError: it does not open.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            width, height = image.size
            return width, height
    except Exception as error:
        raise DataError(f"{path} does not open as an image: {type(error).__name__}: {error}") from error


def _tried(read: Callable[..., T], path: Path, *more: int) -> T | DataError:
    """What `read` returns, or its error."""
    try:
        return read(path, *more)
    except DataError as error:
        return error
