"""A card as a Markdown page: what it is about, one table, what to mistrust, where it was measured.

Names come from models, folders and strangers, so every text is escaped: control and direction characters become a replacement character,
HTML and Markdown marks lose their meaning.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from vis_accel.record import Card, Quantity, Record, quality_axis, undominated

MARK = "●"  # a row no other row beats

_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_MARKS = re.compile(r"([\\`*_\[\]|~#$])")


def escape(text: object) -> str:
    """`text` on one line, with nothing in it that Markdown, HTML or a terminal would act on."""
    plain = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in str(text))
    return "".join(_HTML.get(character, character) for character in _MARKS.sub(r"\\\1", plain)).replace("://", ":&#47;&#47;")


def page(card: Card) -> str:
    """The whole page."""
    parts = [f"# {escape(card.title)}", _about(card), _table(card)]
    axis = quality_axis(card.rows)
    if axis:
        parts.append(f"{MARK} no other row is both faster (images/s) and better ({escape(axis)}).")
    told = [f"- {escape(record.recipe)}: {escape(note)}" for record in card.rows for note in record.notes]
    if told:
        parts.append("What the methods did:\n\n" + "\n".join(told))
    doubts = [f"- {escape(record.recipe)}: {escape(reason)}" for record in card.rows for reason in record.unstable]
    if doubts:
        parts.append("Unstable timings:\n\n" + "\n".join(doubts))
    parts.append(_where(card.baseline))
    return "\n\n".join(part for part in parts if part) + "\n"


def _about(card: Card) -> str:
    base = card.baseline
    facts: dict[str, object] = {"model": f"{base.model} ({base.model_hash[:12]})", "data": base.data, "n": base.n, "seeds": base.seeds}
    return _facts(facts | dict(base.settings) | {f"reference {name}": value for name, value in card.reference.items()})


def _where(record: Record) -> str:
    versions = {name: version for name, version in record.versions.items() if name != "torch" or "torch" not in record.machine}
    return _facts({**record.machine, **versions, "commit": record.commit, "measured": record.finished})


def _facts(facts: dict[str, object]) -> str:
    return "; ".join(f"{escape(name)} {escape(value)}" for name, value in facts.items() if value is not None)


def _table(card: Card) -> str:
    best = undominated(card.rows)
    rows = [_row(card, record, any(record is other for other in best)) for record in card.rows]
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if any(row.get(name, "-") != "-" for row in rows)]
    lines = [[escape(name) for name in columns], ["---"] * len(columns), *([row.get(name, "-") for name in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _row(card: Card, record: Record, best: bool) -> dict[str, str]:
    """The cells of one row by the name of their column, escaped."""
    speed = record.speed
    cells = {
        "recipe": f"{MARK} " * best + escape(record.recipe) + " (baseline)" * (record is card.baseline),
        "kind": record.exactness,
        **{name: _number(value) for name, value in record.counters.items()},
        "images/s": _quantity(speed.images_per_second if speed else None),
        **{f"x {name}": _quantity(speed.ratios.get(name) if speed else None) for name in _names(card.rows, "ratios")},
        **_others(card.rows, record),
        **{name: _quantity(record.quality.get(name)) for name in _names(card.rows, "quality")},
        "same quality": escape(record.verdict or "-"),
        "peak MB": _number(record.peak_memory_bytes and record.peak_memory_bytes / 1e6),
        "first call s": _number(record.first_call_seconds),
    }
    return cells


def _others(rows: Sequence[Record], record: Record) -> dict[str, str]:
    """The speeds at other batch sizes, in columns of their own."""
    cells: dict[str, str] = {}
    for batch in dict.fromkeys(speed.batch for row in rows for speed in row.other_speeds):
        found = next((speed for speed in record.other_speeds if speed.batch == batch), None)
        cells[f"images/s, batch {batch}"] = _quantity(found.images_per_second if found else None)
        for name in _names(rows, "ratios"):
            cells[f"x {name}, batch {batch}"] = _quantity(found.ratios.get(name) if found else None)
    return cells


def _names(rows: Sequence[Record], what: str) -> Iterable[str]:
    """The names of all ratios or qualities of all rows, in the order of their first appearance."""
    found = (record.quality if what == "quality" else record.speed.ratios if record.speed else {} for record in rows)
    return dict.fromkeys(name for quantities in found for name in quantities)


def _quantity(quantity: Quantity | None) -> str:
    return "-" if quantity is None else escape(quantity)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.4g}"
