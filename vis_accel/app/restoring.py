"""From the page's address to settings: the inverse of `reproduce.link`. An address is a stranger's text: what does not fit is left out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vis_accel.app.catalog import Catalog
from vis_accel.app.requests import ClassifyRequest, CompareRequest, GenerateRequest, Request, read
from vis_accel.errors import VisAccelError

__all__ = ["restored"]

_KINDS: dict[str, type[Request]] = {"generate": GenerateRequest, "compare": CompareRequest, "classify": ClassifyRequest}
_NUMBERS = ("seed", "count", "guidance", "steps", "size")


def restored(query: Mapping[str, str], catalog: Catalog) -> tuple[str | None, dict[str, Any]]:
    """The tab and the request's fields that an address asks for; (None, {}) for one that asks for nothing or for what is not allowed."""
    tab = query.get("tab")
    if tab not in _KINDS:
        return None, {}
    kind = _KINDS[tab]
    try:
        given = {name: _value(name, query[name]) for name in kind.model_fields if name in query}
        return tab, read(kind, catalog, **given).model_dump()
    except (VisAccelError, ValueError):
        return tab, {}


def _value(name: str, text: str) -> Any:
    if name == "classes":
        return [int(part) for part in text.split(",")]
    if name == "beside":
        return text == "True"
    return float(text) if name in _NUMBERS else text
