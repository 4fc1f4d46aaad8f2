"""The tab of measured cards: quality against speed, a click on a point loads its recipe."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vis_accel.app.catalog import Catalog
from vis_accel.app.events import LIGHT
from vis_accel.app.frontier import Frontier, read_card, shipped_cards
from vis_accel.app.pages.status import say
from vis_accel.app.plot import plot, table
from vis_accel.errors import VisAccelError

__all__ = ["FrontierPage"]

_PICK = """const pick = (event) => {
  const point = event.target.closest('[data-index]');
  if (point && (event.type === 'click' || event.key === 'Enter' || event.key === ' ')) {
    if (event.type !== 'click' && point.tagName !== 'BUTTON') event.preventDefault();
    if (event.type === 'click' || point.tagName !== 'BUTTON') trigger('click', {index: Number(point.dataset.index)});
  }
};
element.addEventListener('click', pick); element.addEventListener('keydown', pick);"""


class FrontierPage:
    """Puts the tab's components on the page, inside the current block."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self.cards = shipped_cards(catalog.settings)
        name, first = next(iter(self.cards.items()))
        with gr.Column(elem_classes="va-card"):
            with gr.Row(elem_classes="va-go"):
                self.choice = gr.Dropdown(list(self.cards), value=name, label="Card", info="Measured results that ship.", scale=3)
                self.upload = gr.UploadButton("Open a card.json", file_types=[".json"], type="binary", size="md", scale=0, min_width=170)
            self.status = gr.HTML(say("Every point is a recipe. Choose one to load it."))
            self.plot = gr.HTML(plot(first), js_on_load=_PICK)
            self.table = gr.HTML(table(first), js_on_load=_PICK)
            self.points = gr.State(_loadable(first), time_to_live=3600)

    def wire(self, pages: dict[str, Any], tabs: Any) -> None:
        """Connects the parts; a point's recipe goes to the tab it is for."""
        shown = [self.plot, self.table, self.points, self.status]
        self.choice.input(self._chosen, self.choice, shown, **LIGHT)
        self.upload.upload(self._opened, self.upload, shown, **LIGHT)
        makes, classifies = pages["generate"], pages["classify"]

        def load(points: Any, event: gr.EventData) -> list[Any]:
            index = (event._data or {}).get("index")
            nothing = [gr.skip()] * (2 + len(makes.builder.outputs) + len(classifies.builder.outputs))
            if not isinstance(index, int) or not 0 <= index < len(points["recipes"]) or points["recipes"][index] is None:
                return nothing
            recipe, model = points["recipes"][index], points["model"]
            classifier = model in self.catalog.classifiers
            name = model if model in (*self.catalog.classifiers, *self.catalog.pipelines) else self.catalog.pipelines[0]
            there = makes.builder.show(name, recipe) if not classifier else nothing[2 : 2 + len(makes.builder.outputs)]
            here = classifies.builder.show(name, recipe) if classifier else nothing[2 + len(makes.builder.outputs) :]
            return [gr.Tabs(selected="classify" if classifier else "generate"), say(f"Loaded {recipe}."), *there, *here]

        for source in (self.plot, self.table):
            source.click(load, self.points, [tabs, self.status, *makes.builder.outputs, *classifies.builder.outputs], **LIGHT)

    def _chosen(self, name: str) -> list[Any]:
        found = self.cards.get(name)
        return [gr.skip()] * 4 if found is None else _shown(found)

    def _opened(self, data: Any) -> list[Any]:
        try:
            return _shown(read_card(data if isinstance(data, bytes) else b""))
        except VisAccelError as error:
            raise gr.Error(str(error), print_exception=False) from None


def _loadable(frontier: Frontier) -> dict[str, Any]:
    return {"model": frontier.model, "recipes": [point.recipe for point in frontier.points]}


def _shown(frontier: Frontier) -> list[Any]:
    return [plot(frontier), table(frontier), _loadable(frontier), say(f"{frontier.title[:120]}: choose a point to load its recipe.")]
