"""The page: its head, its tabs, and what a link brings back."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vis_accel.app.api import offer
from vis_accel.app.catalog import Catalog
from vis_accel.app.events import LIGHT
from vis_accel.app.pages.classify import ClassifyPage
from vis_accel.app.pages.compare import ComparePage
from vis_accel.app.pages.frontier import FrontierPage
from vis_accel.app.pages.generate import GeneratePage
from vis_accel.app.restoring import restored

__all__ = ["page"]

_HEAD = """<div class="va-head"><h1>vis-accel</h1>
<p>Drag speed against quality, and see what it costs: the same pictures, made by fewer steps, beside what they would have been.</p></div>"""
_LEADS = {
    "generate": "Choose what to make and how much work it may take. Fewer steps are faster; see how few still look right.",
    "compare": "Two recipes make the same pictures from the same seeds, and are timed in turn on this machine.",
    "classify": "A vision transformer looks at a picture, plainly and with less work: what it says, what it left out, what that saves.",
    "frontier": "Results of whole measurements: how good and how fast each recipe is. Nothing on the line is beaten by anything else.",
}
_TABS = (("Generate", GeneratePage), ("Compare", ComparePage), ("Classify", ClassifyPage), ("Frontier", FrontierPage))


def page(catalog: Catalog) -> gr.Blocks:
    """The page with everything on it connected; its models are loaded."""
    with gr.Blocks(title="vis-accel", analytics_enabled=False, delete_cache=(60, 600)) as blocks:
        gr.HTML(_HEAD)
        with gr.Tabs(selected="generate", overflow_behavior="wrap") as tabs:
            parts: dict[str, Any] = {}
            for title, kind in _TABS:
                name = title.lower()
                with gr.Tab(title, id=name):
                    gr.HTML(f'<p class="va-lead">{_LEADS[name]}</p>')
                    parts[name] = kind(catalog)
        frontier = parts.pop("frontier")
        for part in parts.values():
            part.wire()
        frontier.wire(parts, tabs)
        _restore(blocks, tabs, parts, catalog)
        offer(blocks, catalog)
    return blocks


def _restore(blocks: gr.Blocks, tabs: Any, parts: dict[str, Any], catalog: Catalog) -> None:
    """When the page is opened: the settings of its address, or those it comes with."""

    def opened(request: gr.Request) -> list[Any]:
        tab, values = restored(dict(request.query_params), catalog)
        updates: list[Any] = [gr.Tabs(selected=tab) if tab else gr.skip()]
        for name, part in parts.items():
            updates += part.settings(values if name == tab else {})
        return updates

    blocks.load(opened, None, [tabs, *(component for part in parts.values() for component in part.restorable)], **LIGHT)
