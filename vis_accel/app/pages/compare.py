"""The tab that holds two recipes against each other: the same seeds, times measured in turn, and where the pictures differ."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import gradio as gr

from vis_accel.app.builder import Builder
from vis_accel.app.catalog import Catalog
from vis_accel.app.events import checked, followed, started
from vis_accel.app.making import Compared, start_compare
from vis_accel.app.pages.again import Again
from vis_accel.app.pages.generate import PRESETS
from vis_accel.app.pages.status import PREPARING, called, numbers, progress, say, seconds
from vis_accel.app.pages.subject import FIELDS, Subject, captions
from vis_accel.app.pictures import DIFFERENCE_TOP, difference, sheet, tiles
from vis_accel.app.requests import CompareRequest
from vis_accel.app.watching import Progress
from vis_accel.eval.paired import PSNR_CAP

__all__ = ["ComparePage"]

FIRST, SECOND = "First", "Second"


class ComparePage:
    """Puts the tab's components on the page, inside the current block."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        with gr.Row():
            with gr.Column(scale=2, min_width=300, elem_classes="va-card"):
                self.subject = Subject(catalog)
                with gr.Accordion("First recipe", open=False):
                    self.first = Builder(catalog, self.subject.model, catalog.pipelines, PRESETS, "none", "First recipe")
                with gr.Accordion("Second recipe", open=True):
                    self.second = Builder(catalog, self.subject.model, catalog.pipelines, PRESETS, "dpm(steps=10)", "Second recipe")
            with gr.Column(scale=3, min_width=300, elem_classes="va-card"):
                with gr.Row(elem_classes="va-go"):
                    self.go = gr.Button("Compare", variant="primary", min_width=140)
                    self.stop = gr.Button("Stop", interactive=False, min_width=100)
                self.status = gr.HTML(say("Press Compare: both make the same pictures, then both are timed in turn."))
                self.result = gr.HTML()
                self.slider = gr.ImageSlider(label="First recipe left, second right", show_label=False, type="pil", format="png",
                                             visible=False, interactive=False, buttons=["fullscreen"], max_height=560)  # fmt: skip
                self.pictures = gr.HTML()
                self.again = Again()

    def wire(self) -> None:
        """Connects the parts."""
        for part in (self.subject, self.first, self.second, self.again):
            part.wire()
        event = {
            "fn": self._run,
            "inputs": [*self.subject.components, self.first.text, self.second.text],
            "outputs": [self.status, self.result, self.slider, self.pictures, *self.again.outputs, self.stop],
            "validator": checked(CompareRequest, self.catalog, [*FIELDS, "first", "second"], self._fields),
        }
        started(self.go, event, self.status, self.stop)

    @property
    def restorable(self) -> list[Any]:
        """What `settings` sets."""
        return [*self.subject.components, *self.first.outputs, *self.second.outputs]

    def settings(self, values: dict[str, Any]) -> list[Any]:
        """Updates that show a request's fields; without any, what the page comes with."""
        name = values.get("model", self.catalog.pipelines[0])
        return [
            *self.subject.settings(values),
            *self.first.show(name, values.get("first", "none")),
            *self.second.show(name, values.get("second", "dpm(steps=10)")),
        ]

    def _fields(self, given: tuple[Any, ...]) -> dict[str, Any]:
        return {**self.subject.values(given[:-2]), "first": given[-2], "second": given[-1]}

    async def _run(self, *given: Any) -> AsyncGenerator[list[Any], None]:
        async with aclosing(followed("compare", CompareRequest, self.catalog, self._fields(given), self._start, self._shown)) as outputs:
            async for output in outputs:
                yield output

    def _shown(self, request: CompareRequest, update: Progress | None, found: Compared | None) -> list[Any]:
        return self._running(request, update) if found is None else self._finished(request, found)

    def _start(self, request: CompareRequest) -> Any:
        return start_compare(request, self.catalog)

    def _running(self, request: CompareRequest, update: Progress | None) -> list[Any]:
        rest = [*self.again.skipped(), gr.update(interactive=True)]
        if update is None:
            return [progress("Starting", 0, 0), "", gr.update(visible=False), "", *rest]
        if update.stage == "preparing":
            return [progress(PREPARING, 0, 0), gr.skip(), gr.skip(), gr.skip(), *rest]
        if update.stage == "timing":
            bar = progress(f"Timing both in turn, run {update.done}", update.done, update.total)
            return [bar, gr.skip(), gr.skip(), gr.skip(), *rest]
        name = FIRST if update.stage == "first" else SECOND
        bar = progress(f"{name} recipe, call {update.done} of {update.total}", update.done, update.total)
        title = f"{name}: {called(request.first if update.stage == 'first' else request.second)}"
        pictures = gr.skip() if update.pictures is None else tiles(update.pictures, captions(self.catalog, request), title=title)
        return [bar, gr.skip(), gr.skip(), pictures, *rest]

    def _finished(self, request: CompareRequest, found: Compared) -> list[Any]:
        words = captions(self.catalog, request)
        pair = (sheet(found.first.pictures), sheet(found.second.pictures))
        gap = difference(found.first.pictures, found.second.pictures)
        rows = [
            tiles(found.first.pictures, words, title=f"{FIRST}: {called(request.first)}"),
            tiles(found.second.pictures, words, title=f"{SECOND}: {called(request.second)}"),
            tiles(gap, words, title=f"Difference: black is none, bright is {DIFFERENCE_TOP:.0%} of the range or more"),
        ]
        shown = gr.update(value=pair, visible=True)
        return [say(_verdict(found)), _numbers(found), shown, "".join(rows), *self.again.updates(request), gr.update(interactive=False)]


def _verdict(found: Compared) -> str:
    times = found.ratio.value
    if found.ratio.low <= 1 <= found.ratio.high:
        speed = "Both take the same time, as far as this timing can tell."
    else:
        speed = f"The second is {times:.2g} times faster." if times > 1 else f"The second is {1 / times:.2g} times slower."
    if found.ratio.n < 2:
        return f"{speed} There was time for one run of each: that is rough."
    rough = " The machine was busy: the times are rough." if any("standard deviation" in line for line in found.unstable) else ""
    return speed + rough


def _numbers(found: Compared) -> str:
    ratio, n = found.ratio, len(found.first.pictures)
    same = f"; {found.identical} of {n} equal" if found.identical else ""
    decibels = "equal" if found.psnr >= PSNR_CAP else f"{found.psnr:.1f} dB"
    entries = [
        (f"{ratio.value:.2f} x", f"speed, {ratio.low:.2f} to {ratio.high:.2f} over {ratio.n} round{'s' if ratio.n > 1 else ''}"),
        (f"{seconds(found.seconds[0])} / {seconds(found.seconds[1])}", f"first / second, for {n} picture{'s' if n > 1 else ''}"),
        (f"{found.first.calls} / {found.second.calls}", "calls of the network"),
        (f"{found.first.nfe:g} / {found.second.nfe:g}", "evaluations a picture"),
        (decibels, f"PSNR: likeness of the pairs, higher is closer{same}"),
    ]
    if found.ssim is not None:
        entries.append((f"{found.ssim:.3f}", "SSIM: likeness of structure, 1 is equal"))
    return numbers(entries, main=0)
