"""The picture of a card: quality against speed, and the same seeds under each row; for classifiers, how much faster each row is.

samples/<key>.png   the first images of a row, side by side, as they were made
card.png            left: a point per row, with the interval of its quality; right: the rows' images, or a bar a row. Rows of speed alone
                    are bars and nothing else
"""

from __future__ import annotations

import hashlib
import io
import textwrap
from pathlib import Path
from typing import Any

from torch import Tensor

from vis_accel.files import write_atomic
from vis_accel.record import Card, Record, pace, quality_axis, undominated

__all__ = ["draw_card", "save_strip"]

_BLUE, _GREY, _INK = "#1f5fa8", "#8a8f98", "#22262b"
_LARGEST = 256  # pixels: strips of larger images are kept at this height
_TITLE = 120  # characters that fit above the picture


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
    title = textwrap.shorten(card.title, _TITLE, placeholder=" ...")  # the rows are named below it
    figure.suptitle(title, fontsize=11, color=_INK, parse_math=False)  # a $ in a name is a $
    made = any(_strip_path(output, row.recipe).exists() for row in rows)
    if made or quality_axis(rows) or len(rows) == 1:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        _draw_points(left, card)
        (_draw_strips if made or len(rows) == 1 else _draw_bars)(right, card, output)
    else:
        _draw_bars(figure.subplots(), card, output)
    image = io.BytesIO()
    FigureCanvasAgg(figure).print_png(image)
    path = output / "card.png"
    write_atomic(path, image.getvalue())
    return path


def _draw_points(axes: Any, card: Card) -> None:
    axis = quality_axis(card.rows)
    best = [id(row) for row in undominated(card.rows)]
    axes.set_xlabel("images/s of the baseline x paired ratio" if axis == "top-1" else "images/s")
    axes.set_ylabel(axis or "")
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axis is None:
        axes.text(0.5, 0.5, "one row: nothing to compare", ha="center", transform=axes.transAxes, color=_GREY)
        return
    points = [(number, row, point) for number, row in enumerate(card.rows, 1) if (point := _point(row, axis, card.baseline))]
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


def _point(row: Record, axis: str, base: Record) -> tuple[float, float, float, float] | None:
    """images/s, quality and the ends of its interval; None if the row lacks one of them."""
    quality, speed = row.quality.get(axis), pace(row, axis, base)
    if speed is None or quality is None or quality.value is None:
        return None
    low = quality.value if quality.low is None else quality.low
    high = quality.value if quality.high is None else quality.high
    return speed, quality.value, low, high


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


def _draw_bars(axes: Any, card: Card, output: Path) -> None:
    """A bar a row: images/s over those of the baseline that is as much compiled as the recipe, with its interval."""
    rows = card.rows
    axes.set_ylim(len(rows) - 0.3, -0.7)
    axes.set_yticks([])
    axes.axvline(1, color=_GREY, linewidth=0.8)
    axes.set_xlabel("images/s over those of the baseline named last, paired; blue: faster")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    for index, row in enumerate(rows):
        found = {} if row.speed is None else row.speed.ratios
        text = f"{index + 1}  {row.recipe}"
        base = None if row is card.baseline else _fair(row, found)
        if base is not None and (value := found[base].value) is not None:
            low, high = found[base].low or value, found[base].high or value
            colour = _BLUE if low > 1 else _GREY
            axes.barh(index, value, height=0.32, color=colour, alpha=0.75)
            axes.errorbar(value, index, xerr=[[value - low], [high - value]], color=_INK, capsize=3, linewidth=1)
            text += f"   {value:.2f} x {base}"
        axes.text(0, index - 0.25, text, va="bottom", fontsize=8, color=_INK, parse_math=False)
    axes.set_xlim(left=0)
    axes.margins(x=0.05)


def _fair(row: Record, ratios: dict[str, Any]) -> str | None:
    """The baseline that is as much compiled as the row."""
    compiled = any(method.get("name") == "compile" for method in row.recipe_form.get("methods", []))
    names = list(ratios)
    return next((name for name in names if name.endswith("compiled") == compiled), names[0] if names else None)


def _strip_path(output: Path, label: str) -> Path:
    return output / "samples" / f"{hashlib.sha256(label.encode()).hexdigest()[:12]}.png"
