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

__all__ = ["MEMORY", "Pixels", "broken_images", "read_image", "read_size", "stored_side"]

MEMORY = 4 * 2**30  # bytes a part may take in memory; beyond that it stays on the disk
_NAMED = 5  # broken images named in an error

T = TypeVar("T")


class Pixels:
    """The images of one part.

    Args:
        part: which.
        side: of the square, in pixels.
        workers: threads that decode.
        memory: bytes it may take.

    Raises:
        DataError: images that do not open, counted and the first of them named.
    """

    def __init__(self, part: Part, side: int, *, workers: int = 4, memory: int = MEMORY) -> None:
        self.part, self.side = part, side
        self.labels = torch.tensor(part.labels)
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
        self.stored: Tensor | None = None
        self._ahead: tuple[tuple[int, ...], Future[Tensor]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        if 3 * side * side * len(part) <= memory:
            self.stored = torch.stack(_each(self.pool, lambda path: read_image(path, side), part.paths))

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
        return torch.stack(_each(self.pool, lambda index: read_image(self.part.paths[index], self.side), indices))


def stored_side(parts: Sequence[Part], size: int, *, room: float, workers: int = 4) -> int:
    """Side at which to keep images that are trained at `size`: larger by `room`, or their own where all are equal squares no larger.

    Args:
        parts: of the data; their files open.
        size: in pixels.
        room: factor that leaves random crops something to choose from.
        workers: threads that read headers.
    """
    with ThreadPoolExecutor(workers) as pool:
        sizes = {found for part in parts for found in pool.map(read_size, part.paths)}
    if len(sizes) == 1:
        (width, height), *_ = sizes
        if width == height and width <= size:
            return width
    return round(size * room)


def broken_images(parts: Sequence[Part], *, whole: bool, workers: int = 4) -> list[tuple[Path, str]]:
    """The images that do not open, with the reason.

    Args:
        parts: of the data.
        whole: whether each is decoded, or its header read alone.
        workers: threads.
    """
    look: Callable[[Path], object] = (lambda path: read_image(path, 8)) if whole else read_size

    def reason(path: Path) -> tuple[Path, str] | None:
        try:
            look(path)
        except DataError as error:
            return path, error.message
        return None

    with ThreadPoolExecutor(workers) as pool:
        return [found for part in parts for found in pool.map(reason, part.paths) if found is not None]


def broken_error(broken: Sequence[tuple[Path, str]], total: int) -> DataError:
    """The error for images that do not open."""
    names = "; ".join(reason for _, reason in broken[:_NAMED])
    more = f"; and {len(broken) - _NAMED} more" if len(broken) > _NAMED else ""
    return DataError(
        f"{len(broken)} of {total} images do not open: {names}{more}", hint="mend or delete them, or --skip-broken leaves them out"
    )


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
            return image.size
    except Exception as error:
        raise DataError(f"{path} does not open as an image: {type(error).__name__}: {error}") from error


def _each(pool: ThreadPoolExecutor, read: Callable[[T], Tensor], items: Sequence[T]) -> list[Tensor]:
    return list(pool.map(read, items))
