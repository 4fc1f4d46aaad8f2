"""What is made, apart from how: model, class or prompt, seed, count, guidance; the same controls for the pages that make pictures."""

from __future__ import annotations

import random
from typing import Any

import gradio as gr

from vis_accel.app.catalog import Catalog
from vis_accel.app.events import LIGHT
from vis_accel.app.requests import LAST_SEED

__all__ = ["FIELDS", "Subject", "captions"]

FIELDS = ("model", "seed", "count", "classes", "prompt", "guidance")
_ALL = "A mix of all"


class Subject:
    """Puts the components on the page, inside the current block."""

    def __init__(self, catalog: Catalog, count: int = 4) -> None:
        self.catalog, names = catalog, catalog.pipelines
        first = catalog.get(names[0])
        custom = bool(catalog.settings.allow_model)
        with gr.Row():
            self.model = gr.Dropdown(
                names, value=names[0], label="Model", allow_custom_value=custom, info="What makes the pictures.", min_width=140
            )
            self.classes = gr.Dropdown(_choices(first.classes), value=-1, label="Subject", info="What they show.",
                                       visible=bool(first.classes), min_width=140)  # fmt: skip
        self.prompt = gr.Textbox("", label="Prompt", info="What they show, in words.", visible=first.takes("prompt"), max_length=500)
        with gr.Row():
            self.count = gr.Slider(1, catalog.settings.max_images, min(count, catalog.settings.max_images), step=1, label="How many",
                                   info="Pictures at once.", min_width=140)  # fmt: skip
            self.guidance = gr.Slider(0, 20, first.job.guidance_scale or 1, step=0.5, label="Guidance",
                                      visible=first.takes("guidance_scale"), min_width=140,
                                      info="How strictly the subject is followed.")  # fmt: skip
        with gr.Row(elem_classes="va-seed"):
            self.seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=LAST_SEED, min_width=120,
                                  info="The same seed makes the same picture.")  # fmt: skip
            self.dice = gr.Button("Another seed", size="md", min_width=150, scale=0)

    @property
    def components(self) -> list[Any]:
        """In the order of FIELDS."""
        return [self.model, self.seed, self.count, self.classes, self.prompt, self.guidance]

    def wire(self) -> None:
        """Connects the parts."""
        self.dice.click(lambda: random.randrange(1_000_000), None, self.seed, **LIGHT)
        self.model.change(self._fit, self.model, [self.classes, self.prompt, self.guidance], **LIGHT)

    def values(self, given: tuple[Any, ...]) -> dict[str, Any]:
        """The request's fields of what the components hold."""
        found = dict(zip(FIELDS, given, strict=True))
        model = self.catalog.loaded(found["model"]) if isinstance(found["model"], str) else None
        found["classes"] = () if found["classes"] in (-1, None) else (found["classes"],)
        if model is not None:  # what the page hides is not sent
            found |= {} if model.takes("class_labels") else {"classes": ()}
            found |= {} if model.takes("prompt") else {"prompt": ""}
            found |= {} if model.takes("guidance_scale") else {"guidance": None}
        return found

    def settings(self, values: dict[str, Any]) -> list[Any]:
        """Updates that show a request's fields; without any, nothing is changed."""
        if not values:
            return [gr.skip()] * len(FIELDS)
        model = self.catalog.get(values["model"])
        classes = values["classes"][0] if len(values["classes"]) == 1 else -1
        guidance = model.job.guidance_scale or 1 if values["guidance"] is None else values["guidance"]
        fits = dict(zip(("classes", "prompt", "guidance"), self._fit(model.name), strict=True))
        shown = {"classes": classes, "prompt": values["prompt"], "guidance": guidance}
        rest = [gr.update(**{**fits[name], "value": value}) for name, value in shown.items()]
        return [gr.update(value=values["model"]), gr.update(value=values["seed"]), gr.update(value=values["count"]), *rest]

    def _fit(self, name: str) -> list[Any]:
        """What this model takes, and nothing else."""
        if not self.catalog.settings.allows(name):
            return [gr.skip()] * 3
        model = self.catalog.get(name)
        return [
            gr.update(choices=_choices(model.classes), value=-1, visible=bool(model.classes)),
            gr.update(visible=model.takes("prompt")),
            gr.update(visible=model.takes("guidance_scale"), value=model.job.guidance_scale or 1),
        ]


def captions(catalog: Catalog, request: Any) -> list[str]:
    """A line for each picture: its subject and its seed."""
    model = catalog.get(request.model)
    labels = request.classes or model.job.class_labels
    names = [model.classes[labels[i % len(labels)]] if labels and model.classes else "" for i in range(request.count)]
    return [f"{name}, seed {request.seed + i}" if name else f"seed {request.seed + i}" for i, name in enumerate(names)]


def _choices(classes: tuple[str, ...]) -> list[tuple[str, int]]:
    return [(_ALL, -1), *((name, index) for index, name in enumerate(classes))]
