"""The picture of a card: quality against speed, and the same seeds under each row.

samples/<key>.png   the first images of a row, side by side, as they were made
card.png            left: a point per row, with the interval of its quality; right: the rows' images
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

from torch import Tensor

from vis_accel.files import write_atomic
from vis_accel.record import Card, Record, quality_axis, undominated

__all__ = ["draw_card", "save_strip"]

_BLUE, _GREY, _INK = "#1f5fa8", "#8a8f98", "#22262b"
_LARGEST = 256  # pixels: strips of larger images are kept at this height


def save_strip(images: Tensor, output: Path, label: str) -> Path:
    """Keeps the first images of a row (n x 3 x H x W, uint8), side by side."""
    from PIL import Image

    height, width = images.shape[-2:]
    strip = Image.new("RGB", (len(images) * (width + 1) - 1, height), "white")
    for index, image in enumerate(images):
        strip.paste(Image.fromarray(image.permute(1, 2, 0).numpy()), (index * (width + 1), 0))
    if height > _LARGEST:
        strip = strip.resize((strip.width * _LARGEST // height, _LARGEST), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    strip.save(data, "PNG")
    path = _strip_path(output, label)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data.getvalue())
    return path


def draw_card(card: Card, output: Path) -> Path:
    """Draws card.png from the card and the strips in `output`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = card.rows
    figure = Figure(figsize=(12, max(3.6, 0.75 * len(rows) + 1.2)), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    figure.suptitle(card.title, fontsize=11, color=_INK, parse_math=False)  # a $ in a name is a $
    _draw_points(left, card)
    _draw_strips(right, card, output)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    path = output / "card.png"
    write_atomic(path, image.getvalue())
    return path


def _draw_points(axes: Any, card: Card) -> None:
    axis = quality_axis(card.rows)
    best = [id(row) for row in undominated(card.rows)]
    axes.set_xlabel("images/s")
    axes.set_ylabel(axis or "")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axis is None:
        axes.text(0.5, 0.5, "one row: nothing to compare", ha="center", transform=axes.transAxes, color=_GREY)
        return
    points = [(number, row, point) for number, row in enumerate(card.rows, 1) if (point := _point(row, axis))]
    for number, row, (x, y, low, high) in points:
        colour = _BLUE if id(row) in best else _GREY
        axes.errorbar(x, y, yerr=[[y - low], [high - y]], fmt="o", color=colour, markersize=6, capsize=3, linewidth=1.2)
        axes.annotate(str(number), (x, y), xytext=(7, 5), textcoords="offset points", fontsize=10, color=colour, fontweight="bold")
    axes.margins(0.12)
    better = "lower" if axis.startswith("FID") else "higher"
    axes.set_title(f"{better} and further right is better; blue: no other row beats it", fontsize=8, color=_GREY, loc="left")
    floor = card.reference.get("floor")
    if axis.startswith("FID") and isinstance(floor, float):
        text = f"floor (real images) {floor:.3g}"
        axes.text(0.99, 0.01, text, ha="right", va="bottom", transform=axes.transAxes, fontsize=8, color=_GREY)


def _point(row: Record, axis: str) -> tuple[float, float, float, float] | None:
    """images/s, quality and the ends of its interval; None if the row lacks one of them."""
    quality = row.quality.get(axis)
    if row.speed is None or row.speed.images_per_second.value is None or quality is None or quality.value is None:
        return None
    low = quality.value if quality.low is None else quality.low
    high = quality.value if quality.high is None else quality.high
    return row.speed.images_per_second.value, quality.value, low, high


def _draw_strips(axes: Any, card: Card, output: Path) -> None:
    import numpy
    from PIL import Image

    axes.set_axis_off()
    count = len(card.rows)
    for index, row in enumerate(card.rows):
        top = 1 - index / count
        calls = row.counters.get("calls")
        text = f"{index + 1}  {row.recipe}" + (f"   {calls:g} calls" if calls is not None else "")
        axes.text(0, top, text, transform=axes.transAxes, va="top", fontsize=8, color=_INK, parse_math=False)
        path = _strip_path(output, row.recipe)
        if path.exists():
            with Image.open(path, formats=("PNG",)) as strip:
                pixels = numpy.asarray(strip.convert("RGB"))
            share = 0.62 / count
            inset = axes.inset_axes((0, top - 0.28 / count - share, 1, share))
            inset.imshow(pixels, interpolation="nearest", aspect="equal")
            inset.set_anchor("W")
            inset.set_axis_off()


def _strip_path(output: Path, label: str) -> Path:
    return output / "samples" / f"{hashlib.sha256(label.encode()).hexdigest()[:12]}.png"
