"""Pictures from strangers: decoded within bounds, whatever their header claims."""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from vis_accel.app.settings import Settings
from vis_accel.errors import DataError, UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "decoded", "from_path", "from_text"]

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


def decoded(data: bytes, settings: Settings) -> Image:
    """The picture in a file's bytes, as RGB.

    Raises:
        UsageError: too many bytes or pixels.
        DataError: no picture of a format that is read here, or a broken one.
    """
    from PIL import Image, ImageOps

    if len(data) > settings.max_upload:
        raise UsageError(f"A picture may have at most {settings.max_upload:,} bytes; got {len(data):,}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is lower
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > settings.max_pixels:
                    message = f"A picture may have at most {settings.max_pixels:,} pixels; this one is {image.width} x {image.height}."
                    raise UsageError(message, hint="make it smaller first")
                return ImageOps.exif_transpose(image).convert("RGB")
    except UsageError:
        raise
    except Image.DecompressionBombError as error:
        raise UsageError(f"A picture may have at most {settings.max_pixels:,} pixels; this one has far more.") from error
    except Exception as error:  # whatever a broken file makes Pillow raise
        raise DataError(f"This is no picture that can be read; {', '.join(FORMATS)} can.") from error


def from_path(path: str | Path | None, settings: Settings) -> Image:
    """The picture in a file that Gradio received.

    Raises:
        UsageError, DataError: none was given, or as `decoded`.
    """
    if not path:
        raise UsageError("There is no picture yet.", hint="drop one, or take one of those below")
    try:
        with open(path, "rb") as file:
            data = file.read(settings.max_upload + 1)
    except OSError as error:
        raise DataError("The picture is no longer there.", hint="drop it again") from error
    return decoded(data, settings)


def from_text(text: str, settings: Settings) -> Image:
    """The picture in base64, alone or as a data URL.

    Raises:
        UsageError, DataError: no base64, or as `decoded`.
    """
    body = text.partition(",")[2] if text.startswith("data:") else text
    if len(body) > settings.max_upload * 4 // 3 + 4:
        raise UsageError(f"A picture may have at most {settings.max_upload:,} bytes.")
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise DataError("image: must be a picture in base64, or a data URL of one") from error
    return decoded(data, settings)
