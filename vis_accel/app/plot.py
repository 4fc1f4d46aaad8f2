"""The quality-speed plot as a drawing in the page: points that can be reached by keyboard, colours that follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

from vis_accel.app.frontier import Frontier, Point

__all__ = ["plot", "table"]

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 62, 20, 16, 52
NAMED = 6  # points whose names fit beside one another; of more, only the best are named


def plot(frontier: Frontier) -> str:
    """The points; those with a recipe are buttons with its index in `data-index`."""
    x, y = _scales(frontier)
    parts = [_frame(frontier, x, y)]
    best = sorted((point for point in frontier.points if point.best), key=lambda point: point.speed)
    if len(best) > 1:
        line = " ".join(f"{x(point.speed):.1f},{y(point.quality):.1f}" for point in best)
        parts.append(f'<polyline class="va-front" points="{line}"/>')
    parts += [_mark(index, point, frontier, x, y) for index, point in enumerate(frontier.points)]
    arrow = "lower is better" if frontier.lower_is_better else "higher is better"
    return (
        f'<div class="va-plot"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="group" aria-label="{escape(frontier.title)}">{"".join(parts)}'
        f'<text class="va-axis" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        "images a second, faster to the right</text>"
        f""
        f'<text class="va-axis" transform="translate(14 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(frontier.axis[:60])}, {arrow}</text></svg></div>"
    )


def table(frontier: Frontier) -> str:
    """The same as rows, for who prefers to read."""
    rows = "".join(_row(index, point) for index, point in enumerate(frontier.points))
    head = f'<tr><th>recipe</th><th class="va-n">{escape(frontier.axis[:40])}</th><th class="va-n">images/s</th><th class="va-n">speed</th>'
    return (
        f'<div class="va-scroll"><table class="va-table"><thead>{head}<th class="va-n">calls</th></tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
        f'<p class="va-note">{escape(frontier.note[:300])}</p>'
    )


def _row(index: int, point: Point) -> str:
    name = escape(_short(point.label, 80))
    label = name if point.recipe is None else f'<button type="button" class="va-link" data-index="{index}">{name}</button>'
    interval = "" if point.low is None or point.high is None else f" [{point.low:.3g}, {point.high:.3g}]"
    cells = (f"{point.quality:.4g}{interval}", f"{point.speed:.3g}", _times(point.ratio), "" if point.calls is None else f"{point.calls:g}")
    weight = ' class="va-best"' if point.best else ""
    return f"<tr{weight}><td>{label}</td>{''.join(f'<td class=va-n>{cell}</td>' for cell in cells)}</tr>"


def _mark(index: int, point: Point, frontier: Frontier, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    cx, cy = x(point.speed), y(point.quality)
    name = escape(_short(point.label, 80))
    words = f"{name}: {escape(frontier.axis[:40])} {point.quality:.4g}, {point.speed:.3g} images a second"
    bar = ""
    if point.low is not None and point.high is not None:
        bar = f'<line class="va-bar" x1="{cx:.1f}" x2="{cx:.1f}" y1="{y(point.low):.1f}" y2="{y(point.high):.1f}"/>'
    kind = "va-best" if point.best else "va-rest"
    reach = f'role="button" tabindex="0" data-index="{index}"' if point.recipe is not None else 'role="img"'
    left = cx > WIDTH * 0.72
    anchor, aside = ("end", -11) if left else ("start", 11)
    label = f'<text x="{cx + aside:.1f}" y="{cy - 9:.1f}" text-anchor="{anchor}">{escape(_short(point.label, 30))}</text>'
    label = label if point.best or len(frontier.points) <= NAMED else ""
    return (
        f'<g class="va-point {kind}" {reach} aria-label="{words}"><title>{words}</title>{bar}'
        f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="16" class="va-hit"/><circle cx="{cx:.1f}" cy="{cy:.1f}" r="6"/>{label}</g>'
    )


def _frame(frontier: Frontier, x: Callable[[float], float], y: Callable[[float], float]) -> str:
    lines = []
    for value in _ticks([point.speed for point in frontier.points]):
        lines.append(f'<line class="va-grid" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        lines.append(f'<text x="{x(value):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{value:g}</text>')
    for value in _ticks(_ends(frontier)):
        lines.append(f'<line class="va-grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    return "".join(lines)


def _scales(frontier: Frontier) -> tuple[Callable[[float], float], Callable[[float], float]]:
    speeds = [point.speed for point in frontier.points]
    ends, x = _ends(frontier), _linear(min(speeds), max(speeds), LEFT, WIDTH - RIGHT)
    return x, _linear(min(ends), max(ends), HEIGHT - BOTTOM, TOP)


def _ends(frontier: Frontier) -> list[float]:
    """All qualities, and the ends of their intervals."""
    return [value for point in frontier.points for value in (point.quality, point.low, point.high) if value is not None]


def _linear(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    pad = (high - low or abs(high) or 1.0) * 0.08
    low, high = low - pad, high + pad
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(values: list[float], count: int = 5) -> list[float]:
    """Round numbers between the least and the greatest."""
    low, high = min(values), max(values)
    if high <= low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step)
    return [round(index * step, 10) for index in range(first, math.floor(high / step) + 1)][:12]


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f} x"


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
