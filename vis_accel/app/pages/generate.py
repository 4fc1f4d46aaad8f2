"""The tab that makes pictures: they become clear while they are made, and the work can be stopped at any step."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from vis_accel.app.builder import Builder
from vis_accel.app.catalog import Catalog
from vis_accel.app.events import LIGHT, MODEL, checked, followed
from vis_accel.app.making import Made, start_generate
from vis_accel.app.pages.again import Again
from vis_accel.app.pages.status import numbers, progress, say, seconds
from vis_accel.app.pages.subject import FIELDS, Subject, captions
from vis_accel.app.pictures import blank_tiles, tiles
from vis_accel.app.requests import GenerateRequest
from vis_accel.app.watching import Progress

__all__ = ["PRESETS", "GeneratePage"]

PRESETS = (("As the model comes", "none"), ("Fast", "dpm(steps=10)"), ("Faster", "unipc(steps=7)"), ("Fewest calls", "unipc(steps=4)"))


class GeneratePage:
    """Puts the tab's components on the page, inside the current block."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_classes="va-card"):
                self.subject = Subject(catalog)
                self.builder = Builder(catalog, self.subject.model, catalog.pipelines, PRESETS, "dpm(steps=10)")
            with gr.Column(scale=3, min_width=300, elem_classes="va-card"):
                with gr.Row(elem_classes="va-go"):
                    self.go = gr.Button("Generate", variant="primary", min_width=140)
                    self.stop = gr.Button("Stop", interactive=False, min_width=100)
                self.status = gr.HTML(say("Press Generate: the pictures become clear before your eyes."))
                self.pictures = gr.HTML(blank_tiles([""] * 4))
                self.result = gr.HTML()
                self.again = Again()

    def wire(self) -> None:
        """Connects the parts."""
        self.subject.wire()
        self.builder.wire()
        self.again.wire()
        names = [*FIELDS, "recipe"]
        outputs = [self.status, self.pictures, self.result, *self.again.outputs, self.stop]
        event = self.go.click(
            self._run, [*self.subject.components, self.builder.text], outputs, api_visibility="private", show_progress="hidden",
            validator=checked(GenerateRequest, self.catalog, names, self._fields), **MODEL,
        )  # fmt: skip
        self.stop.click(lambda: [say("Stopped."), gr.update(interactive=False)], None, [self.status, self.stop], cancels=[event], **LIGHT)

    @property
    def restorable(self) -> list[Any]:
        """What `settings` sets."""
        return [*self.subject.components, *self.builder.outputs]

    def settings(self, values: dict[str, Any]) -> list[Any]:
        """Updates that show a request's fields; without any, what the page comes with."""
        name = values.get("model", self.catalog.pipelines[0])
        return [*self.subject.settings(values), *self.builder.show(name, values.get("recipe", "dpm(steps=10)"))]

    def _fields(self, given: tuple[Any, ...]) -> dict[str, Any]:
        return {**self.subject.values(given[:-1]), "recipe": given[-1]}

    async def _run(self, *given: Any) -> AsyncGenerator[list[Any], None]:
        async with aclosing(followed("generate", GenerateRequest, self.catalog, self._fields(given), self._start, self._shown)) as outputs:
            async for output in outputs:
                yield output

    def _start(self, request: GenerateRequest) -> Any:
        return start_generate(request, self.catalog)

    def _shown(self, request: GenerateRequest, update: Progress | None, made: Made | None) -> list[Any]:
        words = captions(self.catalog, request)
        if made is not None:
            facts = [
                (seconds(made.seconds), f"for {request.count} picture{'s' if request.count > 1 else ''}"),
                (f"{request.count / made.seconds:.3g}", "pictures a second"),
                (str(made.calls), "calls of the network"),
                (f"{made.nfe:g}", "evaluations a picture; guidance doubles them"),
            ]
            done = [
                say(f"Done with {request.recipe if request.recipe != 'none' else 'the model as it comes'}."),
                tiles(made.pictures, words),
            ]
            return [*done, numbers(facts), *self.again.updates(request), gr.update(interactive=False)]
        rest = ["", *self.again.skipped(), gr.update(interactive=True)]
        if update is None:
            return [progress("Starting", 0, 0), blank_tiles(words), *rest]
        pictures = gr.skip() if update.pictures is None else tiles(update.pictures, words)
        return [progress(f"Call {update.done} of {update.total}", update.done, update.total), pictures, *rest]
