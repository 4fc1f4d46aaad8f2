"""Pictures as a page shows them: small ones enlarged without blur, a heat map of differences, sheets for a slider.

Pictures are uint8, B x 3 x H x W. HTML goes into the page with the pixels inside: nothing is written to the disk. All text is escaped.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DIFFERENCE_TOP", "blank_tiles", "data_uri", "difference", "sheet", "tiles"]

DIFFERENCE_TOP = 0.25  # of the full range: the brightest colour of a heat map
_SHEET = 720  # pixels: about how wide a sheet is
_LARGE = 512  # pixels: pictures of that size are not enlarged


def data_uri(picture: Tensor) -> str:
    """A picture (uint8, 3 x H x W) as a PNG inside a link."""
    from PIL import Image

    data = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(data, "PNG")
    return f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"


def tiles(pictures: Tensor, captions: Sequence[str], *, title: str = "", large: bool = False) -> str:
    """A row of pictures with captions, as HTML; `large` for few pictures that may be wide."""
    figures = "".join(
        f'<figure><img src="{data_uri(picture)}" alt="{escape(caption)}"><figcaption>{escape(caption)}</figcaption></figure>'
        for picture, caption in zip(pictures, captions, strict=True)
    )
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    return f'<section class="va-tiles{" va-large" if large or len(pictures) == 1 else ""}">{heading}<div>{figures}</div></section>'


def blank_tiles(captions: Sequence[str], *, title: str = "") -> str:
    """The places of pictures that are still to come."""
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    figures = "".join(
        f'<figure><div class="va-blank" role="img" aria-label="{escape(caption)}, not made yet"></div>'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
        for caption in captions
    )
    return f'<section class="va-tiles{" va-large" if len(captions) == 1 else ""}">{heading}<div>{figures}</div></section>'


def difference(first: Tensor, second: Tensor) -> Tensor:
    """Where two pictures of one seed differ: the mean absolute difference over the channels, from black (none) to bright; as they are."""
    from matplotlib import colormaps

    gap = (first.float() - second.float()).abs().mean(dim=1) / 255 / DIFFERENCE_TOP  # B x H x W
    table = torch.tensor(colormaps["magma"](range(256)))[:, :3]
    colours = table[(gap.clamp(0, 1) * 255).round().long()]
    return (colours * 255).round().to(torch.uint8).permute(0, 3, 1, 2)


def sheet(pictures: Tensor) -> Image:
    """All pictures on one sheet, enlarged without blur."""
    from PIL import Image

    count, _, height, width = pictures.shape
    columns = math.ceil(math.sqrt(count))
    scale = max(1, _SHEET // (columns * width)) if width < _LARGE else 1
    step_x, step_y = width * scale + 4, height * scale + 4
    whole = Image.new("RGB", (columns * step_x - 4, math.ceil(count / columns) * step_y - 4), "white")
    for index, picture in enumerate(pictures):
        one = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        enlarged = one.resize((width * scale, height * scale), Image.Resampling.NEAREST)
        whole.paste(enlarged, (index % columns * step_x, index // columns * step_y))
    return whole
