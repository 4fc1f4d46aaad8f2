"""The tab that makes pictures: they become clear while they are made, and the work can be stopped at any step."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from vis_accel.app.builder import Builder
from vis_accel.app.catalog import Catalog
from vis_accel.app.events import checked, followed, started
from vis_accel.app.making import Made, likeness, start_generate
from vis_accel.app.pages.again import Again
from vis_accel.app.pages.status import PREPARING, called, numbers, progress, say, seconds
from vis_accel.app.pages.subject import FIELDS, Subject, captions
from vis_accel.app.pictures import blank_tiles, tiles
from vis_accel.app.requests import GenerateRequest
from vis_accel.app.watching import Progress

__all__ = ["PRESETS", "GeneratePage"]

PRESETS = (
    ("As the model comes", "none"),
    ("Fast", "dpm(steps=10)"),
    ("Faster", "unipc(steps=7)"),
    ("Fewest calls", "unipc(steps=4)"),
    ("Trained for few calls", "distilled"),
)
RECIPE, STOCK = "With the recipe", "The model as it comes, same seeds"


class GeneratePage:
    """Puts the tab's components on the page, inside the current block."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_classes="va-card"):
                self.subject = Subject(catalog)
                self.builder = Builder(catalog, self.subject.model, catalog.pipelines, PRESETS, "dpm(steps=10)")
                self.beside = gr.Checkbox(True, label="Beside it, the model as it comes", info="From the same seeds: what the speed costs.")
            with gr.Column(scale=3, min_width=300, elem_classes="va-card"):
                with gr.Row(elem_classes="va-go"):
                    self.go = gr.Button("Generate", variant="primary", min_width=140)
                    self.stop = gr.Button("Stop", interactive=False, min_width=100)
                self.status = gr.HTML(say("Press Generate: the pictures become clear before your eyes."))
                self.pictures = gr.HTML(blank_tiles([""] * 4))
                self.stock = gr.HTML()
                self.result = gr.HTML()
                self.again = Again()

    def wire(self) -> None:
        """Connects the parts."""
        self.subject.wire()
        self.builder.wire()
        self.again.wire()
        event = {
            "fn": self._run,
            "inputs": [*self.subject.components, self.builder.text, self.beside],
            "outputs": [self.status, self.pictures, self.stock, self.result, *self.again.outputs, self.stop],
            "validator": checked(GenerateRequest, self.catalog, [*FIELDS, "recipe", "beside"], self._fields),
        }
        started(self.go, event, self.status, self.stop)

    @property
    def restorable(self) -> list[Any]:
        """What `settings` sets."""
        return [*self.subject.components, *self.builder.outputs, self.beside]

    def settings(self, values: dict[str, Any]) -> list[Any]:
        """Updates that show a request's fields; without any, what the page comes with."""
        name = values.get("model", self.catalog.pipelines[0])
        recipe = self.builder.show(name, values.get("recipe", "dpm(steps=10)"))
        return [*self.subject.settings(values), *recipe, gr.update(value=values.get("beside", True))]

    def _fields(self, given: tuple[Any, ...]) -> dict[str, Any]:
        return {**self.subject.values(given[:-2]), "recipe": given[-2], "beside": given[-1]}

    async def _run(self, *given: Any) -> AsyncGenerator[list[Any], None]:
        done = [False]  # whether the first pictures are on the page for good

        def show(request: GenerateRequest, update: Progress | None, made: Made | None) -> list[Any]:
            if made is not None:
                return self._finished(request, made)
            found = self._running(request, update, done[0])
            done[0] = update is not None and update.before is not None
            return found

        async with aclosing(followed("generate", GenerateRequest, self.catalog, self._fields(given), self._start, show)) as outputs:
            async for output in outputs:
                yield output

    def _start(self, request: GenerateRequest) -> Any:
        return start_generate(request, self.catalog)

    def _running(self, request: GenerateRequest, update: Progress | None, done: bool) -> list[Any]:
        words, rest = captions(self.catalog, request), ["", *self.again.skipped(), gr.update(interactive=True)]
        if update is None:
            return [progress("Starting", 0, 0), blank_tiles(words), "", *rest]
        if update.stage == "preparing":
            return [progress(PREPARING, 0, 0), gr.skip(), gr.skip(), *rest]
        seen = gr.skip() if update.pictures is None else update.pictures
        bar = progress(f"Call {update.done} of {update.total}", update.done, update.total)
        if update.before is None:
            return [bar, seen if update.pictures is None else tiles(seen, words), gr.skip(), *rest]
        bar = progress(f"The model as it comes, call {update.done} of {update.total}", update.done, update.total)
        first = gr.skip() if done else tiles(update.before.pictures, words, title=RECIPE)
        return [bar, first, seen if update.pictures is None else tiles(seen, words, title=STOCK), *rest]

    def _finished(self, request: GenerateRequest, made: Made) -> list[Any]:
        words = captions(self.catalog, request)
        again = [*self.again.updates(request), gr.update(interactive=False)]
        if made.stock is None:
            return [say(f"Done with {called(request.recipe)}."), tiles(made.pictures, words), "", numbers(_alone(request, made)), *again]
        verdict = say(f"{_ratio(made.stock.seconds / made.seconds)} than the model as it comes, in one run each.")
        pair = [tiles(made.pictures, words, title=RECIPE), tiles(made.stock.pictures, words, title=STOCK)]
        return [verdict, *pair, numbers(_beside(made, made.stock), main=0), *again]


def _alone(request: GenerateRequest, made: Made) -> list[tuple[str, str]]:
    return [
        (seconds(made.seconds), f"for {request.count} picture{'s' if request.count > 1 else ''}"),
        (f"{request.count / made.seconds:.3g}", "pictures a second"),
        (str(made.calls), "calls of the network"),
        (f"{made.nfe:g}", "evaluations a picture; guidance doubles them"),
    ]


def _beside(made: Made, stock: Made) -> list[tuple[str, str]]:
    decibels, _ = likeness(stock.pictures, made.pictures)
    return [
        (f"{stock.seconds / made.seconds:.2g} x", "speed, in one run each"),
        (f"{seconds(made.seconds)} / {seconds(stock.seconds)}", "with the recipe / without"),
        (f"{made.calls} / {stock.calls}", "calls of the network"),
        (f"{made.nfe:g} / {stock.nfe:g}", "evaluations a picture"),
        (f"{decibels:.1f} dB", "likeness (PSNR): above 30 is hard to tell apart"),
    ]


def _ratio(times: float) -> str:
    return f"{times:.2g} times faster" if times >= 1 else f"{1 / times:.2g} times slower"
