"""The tab for vision transformers: what the plain and the accelerated model say of a picture, what became of its tokens, where it left."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from html import escape
from typing import Any

import gradio as gr

from vis_accel.app import reproduce
from vis_accel.app.builder import Builder
from vis_accel.app.catalog import Catalog
from vis_accel.app.classifying import Answer, Classified, start_classify
from vis_accel.app.events import LIGHT, checked, followed, started
from vis_accel.app.look import COPY_LINK
from vis_accel.app.pages.status import PREPARING, numbers, progress, say, seconds
from vis_accel.app.pictures import data_uri, tiles
from vis_accel.app.requests import ClassifyRequest
from vis_accel.app.uploads import decoded, from_path
from vis_accel.app.watching import Progress
from vis_accel.app.worker import Task
from vis_accel.errors import VisAccelError

__all__ = ["ClassifyPage"]

PRESETS = (("As the model comes", "none"), ("Leave early", "early-exit"), ("Merge tokens", "tome(r=5)"), ("Drop patches", "evit"))
SAMPLES = 10
_PICK = """element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-index]');
  if (button) trigger('click', {index: Number(button.dataset.index)});
});"""


class ClassifyPage:
    """Puts the tab's components on the page, inside the current block."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog, names = catalog, catalog.classifiers
        self.samples = _samples(names[0])
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_classes="va-card"):
                self.image = gr.Image(type="filepath", image_mode=None, sources=["upload", "clipboard"], label="Picture", height=240,
                                      placeholder="Drop a picture here, or click", elem_classes="va-drop")  # fmt: skip
                self.shelf = gr.HTML(_shelf(self.samples), js_on_load=_PICK)
                many = len(names) > 1 or bool(catalog.settings.allow_model)
                self.model = gr.Dropdown(names, value=names[0], label="Model", visible=many, allow_custom_value=many)
                self.builder = Builder(catalog, self.model, names, PRESETS, "early-exit")
            with gr.Column(scale=3, min_width=300, elem_classes="va-card"):
                with gr.Row(elem_classes="va-go"):
                    self.go = gr.Button("Classify", variant="primary", min_width=140)
                    self.stop = gr.Button("Stop", interactive=False, min_width=100)
                self.status = gr.HTML(say("Drop a picture or take one of those shown, then press Classify."))
                self.result = gr.HTML()
                self.answers = gr.HTML()
                self.stages = gr.HTML()
                with gr.Row():
                    self.link = gr.Button("Copy link", size="sm", visible=False, scale=0, min_width=140)
                self.query = gr.Textbox(visible=False)

    def wire(self) -> None:
        """Connects the parts."""
        self.builder.wire()
        self.shelf.click(self._taken, None, self.image, **LIGHT)
        event = {
            "fn": self._run,
            "inputs": [self.model, self.builder.text, self.image],
            "outputs": [self.status, self.result, self.answers, self.stages, self.stop, self.link, self.query],
            "validator": checked(ClassifyRequest, self.catalog, ["model", "recipe", "image"], self._checked),
        }
        started(self.go, event, self.status, self.stop)
        self.link.click(None, self.query, None, js=COPY_LINK, api_visibility="private")

    @property
    def restorable(self) -> list[Any]:
        """What `settings` sets."""
        return [self.model, *self.builder.outputs]

    def settings(self, values: dict[str, Any]) -> list[Any]:
        """Updates that show a request's fields; without any, what the page comes with."""
        name = values.get("model", self.catalog.classifiers[0])
        return [gr.update(value=name) if values else gr.skip(), *self.builder.show(name, values.get("recipe", "early-exit"))]

    def _checked(self, given: tuple[Any, ...]) -> dict[str, Any]:
        """The request's fields; a picture that does not open is refused here as well."""
        model, recipe, image = given
        try:
            from_path(image, self.catalog.settings)
        except VisAccelError as error:
            error.message = f"image: {error.message}"
            raise
        return {"model": model, "recipe": recipe}

    def _taken(self, event: gr.EventData) -> Any:
        index = (event._data or {}).get("index")
        if not isinstance(index, int) or not 0 <= index < len(self.samples):
            return gr.skip()
        path = gr.processing_utils.save_bytes_to_cache(self.samples[index], f"sample-{index}.jpg", self.image.GRADIO_CACHE)
        return gr.update(value=path)

    async def _run(self, model: Any, recipe: Any, path: Any) -> AsyncGenerator[list[Any], None]:
        def start(request: ClassifyRequest) -> Task:
            return start_classify(request, from_path(path, self.catalog.settings), self.catalog)

        fields = {"model": model, "recipe": recipe}
        async with aclosing(followed("classify", ClassifyRequest, self.catalog, fields, start, _outputs)) as outputs:
            async for output in outputs:
                yield output


def _outputs(request: ClassifyRequest, update: Progress | None, found: Classified | None) -> list[Any]:
    if found is not None:
        return [*_shown(request, found), gr.update(interactive=False), gr.update(visible=True), reproduce.link(request)]
    if update is None or update.stage == "preparing":
        bar = progress("Starting" if update is None else PREPARING, 0, 0)
    else:
        bar = progress("Timing both in turn", update.done, update.total)
    return [bar, *(gr.skip() for _ in range(3)), gr.update(interactive=True), gr.skip(), gr.skip()]


def _shown(request: ClassifyRequest, found: Classified) -> list[str]:
    plain, fast = found.plain.top[0][0], found.fast.top[0][0]
    agreed = f"Both say {plain}." if plain == fast else f"They disagree: {plain}, and {fast} under the recipe."
    if request.recipe == "none":
        return [say(f"It says {plain}."), "", _bars("The model", found.plain, found), ""]
    facts = [
        (f"{found.ratio.value:.2f} x", f"speed, {found.ratio.low:.2f} to {found.ratio.high:.2f}, one picture at a time"),
        (f"{seconds(found.plain.seconds)} / {seconds(found.fast.seconds)}", "plain / accelerated"),
    ]
    if found.ratio.low <= 1:
        agreed += " At one picture at a time the recipe saves nothing here: the model is small."
    exits = "".join(f"<li>{escape(line)}</li>" for line in found.exits)
    left = f'<section class="va-exits"><h3>Where it left, and why</h3><ul>{exits}</ul></section>' if exits else ""
    both = f'<div class="va-pair">{_bars("Plain", found.plain, found)}{_bars("Accelerated", found.fast, found)}</div>'
    return [say(agreed), numbers(facts, main=0), both + left, _overlay(found)]


def _bars(title: str, answer: Answer, found: Classified) -> str:
    rows = "".join(
        f'<li><span>{escape(name)}</span><meter min="0" max="1" value="{share:.4f}"></meter><span class="va-n">{share:.1%}</span></li>'
        for name, share in answer.top
    )
    return f'<section class="va-bars"><h3>{escape(title)}</h3><ol>{rows}</ol></section>'


def _overlay(found: Classified) -> str:
    if not found.stages:
        return ""
    import torch

    pictures = torch.stack([stage.picture for stage in found.stages])
    legend = '<p class="va-note">Patches in one colour became one token; dark ones were dropped.</p>'
    return tiles(pictures, [stage.caption for stage in found.stages], title="What became of its patches", large=False) + legend


def _samples(model: str) -> list[bytes]:
    """A few pictures that ship with the model, as files."""
    from vis_accel.zoo.labelled import bundled_images

    images = bundled_images(model)
    return [] if images is None else [images.read(index) for index in range(min(SAMPLES, len(images)))]


def _shelf(samples: list[bytes]) -> str:
    import torch
    from torchvision.transforms.functional import pil_to_tensor

    from vis_accel.app.settings import Settings

    buttons = []
    for index, sample in enumerate(samples):
        picture: torch.Tensor = pil_to_tensor(decoded(sample, Settings()))
        buttons.append(
            f'<button type="button" data-index="{index}" aria-label="Sample {index + 1}"><img src="{data_uri(picture)}" alt=""></button>'
        )
    return f'<div class="va-shelf">{"".join(buttons)}</div>' if buttons else ""
