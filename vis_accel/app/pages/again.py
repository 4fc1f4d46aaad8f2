"""How to have the same again: three buttons under a result, and the lines themselves."""

from __future__ import annotations

from typing import Any

import gradio as gr

from vis_accel.app import reproduce
from vis_accel.app.events import LIGHT
from vis_accel.app.look import COPY, COPY_LINK

__all__ = ["Again"]


class Again:
    """Puts the components on the page, inside the current block; hidden until there is a result."""

    def __init__(self) -> None:
        with gr.Column(visible=False) as self.box:
            with gr.Row(elem_classes="va-copy"):
                self.command = gr.Button("Copy as command", size="sm")
                self.python = gr.Button("Copy as Python", size="sm")
                self.link = gr.Button("Copy link", size="sm")
            with gr.Accordion("The lines themselves", open=False):
                self.shell = gr.Code(language="shell", label="Command", interactive=False, wrap_lines=True)
                self.code = gr.Code(language="python", label="Python", interactive=False, wrap_lines=True)
            self.query = gr.Textbox(visible=False)

    @property
    def outputs(self) -> list[Any]:
        """What `updates` sets."""
        return [self.box, self.shell, self.code, self.query]

    def wire(self) -> None:
        """Connects the buttons: all of it happens in the browser."""
        quiet = {**LIGHT, "queue": False}
        for button, source, script in (
            (self.command, self.shell, COPY),
            (self.python, self.code, COPY),
            (self.link, self.query, COPY_LINK),
        ):
            button.click(None, source, None, js=script, **{k: v for k, v in quiet.items() if not k.startswith("concurrency")})
            button.click(_thanks, None, None, **LIGHT)

    def updates(self, request: Any) -> list[Any]:
        """The lines of this request."""
        return [gr.update(visible=True), reproduce.command(request), reproduce.python(request), reproduce.link(request)]

    def skipped(self) -> list[Any]:
        """Leaves everything as it is."""
        return [gr.skip()] * 4


def _thanks() -> None:
    gr.Info("Copied.", duration=2)
