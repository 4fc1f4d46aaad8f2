"""The part of a page that puts a recipe together: presets, a sampler with its numbers, a switch for each other method, and the text.

The text is the truth: controls write it, and a text that was typed, linked or clicked on sets the controls. What cannot be chosen now is
greyed, with the reason.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from vis_accel import registry
from vis_accel.app import recipes
from vis_accel.app.catalog import Catalog, Model
from vis_accel.app.composing import SCHEDULE, STEPS, Choice, compose, described, fits, reason, sampler_reason, schedule_names
from vis_accel.app.controls import Control, controls, value_of
from vis_accel.app.events import LIGHT
from vis_accel.errors import VisAccelError
from vis_accel.method import Method
from vis_accel.recipe import Recipe
from vis_accel.samplers.solver import Solver

__all__ = ["Builder"]

OWN = ("As the model comes", "")
SAMPLER = "How noise is turned into a picture."


class Builder:
    """Puts the components on the page, inside the current block.

    Args:
        catalog: the models.
        model: the component that names the model.
        names: of the models of this page.
        presets: (label, recipe) to start from.
        value: the recipe at the start.
        label: of the recipe's text.
    """

    def __init__(
        self, catalog: Catalog, model: Any, names: Sequence[str], presets: Sequence[tuple[str, str]], value: str, label: str = "Recipe"
    ) -> None:
        self.catalog, self.model = catalog, model
        first = catalog.get(names[0])
        kinds = [registry.load(name) for name in registry.entries() if any(not catalog.get(each).offers[name].foreign for each in names)]
        self.samplers = [kind for kind in kinds if kind.family == "sampler"]
        self.others = [kind for kind in kinds if kind.family != "sampler"]
        self.controls: list[tuple[Control, Any]] = []
        self.groups: list[tuple[type[Method], Any]] = []
        self.presets = tuple(presets)
        self.preset = gr.Radio(self._fitting(first), value=value, label="How much work", elem_classes="va-presets")
        if self.samplers:
            self._sampler_part(first)
        self.switches = self._switch_part(first)
        self.text = gr.Textbox(value=value, label=label, lines=1, max_lines=4, elem_classes="va-recipe", max_length=recipes.LONGEST,
                               info="All of the above in one line, to edit, copy and share.")  # fmt: skip
        self.note = gr.HTML(elem_classes="va-builder-note", value=_note(described(first, recipes.read(value))))

    def _sampler_part(self, model: Model) -> None:
        choices = [OWN, *((f"{kind.name} - {registry.entries()[kind.name].summary}", kind.name) for kind in self.samplers)]
        self.steps = gr.Slider(1, self.catalog.settings.max_steps, model.steps, step=1, label="Steps", interactive=False,
                               info="Fewer is faster. Drag, and see when the pictures begin to suffer.")  # fmt: skip
        with gr.Accordion("Sampler and schedule", open=False):
            self.sampler = gr.Dropdown(choices, value="", label="Sampler", info=SAMPLER, filterable=True)
            self.schedule = gr.Dropdown(["auto"], value="auto", label="Schedule", info="Where the steps lie.", interactive=False)
            for kind in self.samplers:
                self._group(kind)

    def _switch_part(self, model: Model) -> list[tuple[type[Method], Any]]:
        switches = []
        with gr.Accordion("More methods" if self.samplers else "Methods", open=False):
            for kind in self.others:
                why = reason(model, Recipe.empty, kind.name)
                box = gr.Checkbox(False, label=kind.name, info=_info(kind, why), interactive=why is None, elem_classes="va-switch")
                switches.append((kind, box))
                self._group(kind)
        return switches

    def _group(self, kind: type[Method]) -> None:
        shown = [control for control in controls(kind) if not (issubclass(kind, Solver) and control.name in (STEPS, SCHEDULE))]
        if not shown:
            return
        with gr.Group(visible=False) as group, gr.Row():
            for control in shown:
                self.controls.append((control, _component(control)))
        self.groups.append((kind, group))

    # Events

    @property
    def _chosen(self) -> list[Any]:
        own = [self.sampler, self.steps, self.schedule] if self.samplers else []
        return [*own, *(box for _, box in self.switches), *(component for _, component in self.controls)]

    @property
    def outputs(self) -> list[Any]:
        """All that `show` sets: text, note, then the controls."""
        return [self.text, self.note, self.preset, *self._chosen, *(group for _, group in self.groups)]

    def wire(self) -> None:
        """Connects the parts; to be called when the page is complete."""
        inputs = [self.model, self.text, *self._chosen]
        gr.on([component.input for component in self._chosen], self._compose, inputs, self.outputs, trigger_mode="always_last", **LIGHT)
        gr.on(
            [self.text.input, self.text.blur, self.text.submit],
            self._typed,
            [self.model, self.text],
            self.outputs,
            trigger_mode="always_last",
            **LIGHT,
        )
        self.preset.input(self.show, [self.model, self.preset], self.outputs, **LIGHT)
        self.model.change(self._moved, [self.model, self.text], self.outputs, **LIGHT)

    def _compose(self, name: str, text: str, *values: Any) -> list[Any]:
        """A control was moved: writes the recipe, and leaves all values as they are."""
        try:
            model = self.catalog.get(name)
            recipe = compose(self._before(text), self._choice(values))
            recipes.admit(recipe, self.catalog.settings)
            return self._updates(model, recipe, str(recipe), values=False)
        except VisAccelError as error:
            return self._refused(error)

    def _typed(self, name: str, text: str) -> list[Any]:
        found = self.show(name, text)
        found[0] = gr.skip()  # the cursor is in there
        return found

    def _moved(self, name: str, text: str) -> list[Any]:
        """Another model: the recipe stays if the model can have it, else the last preset that it can."""
        if not self.catalog.settings.allows(name):
            return self.show(name, text)
        model = self.catalog.get(name)
        return self.show(name, text if fits(model, text) else self._fitting(model)[-1][1])

    def show(self, name: str, text: str) -> list[Any]:
        """Sets everything to a recipe's text on a model."""
        try:
            model, recipe = self.catalog.get(name), recipes.read(text)
            recipes.admit(recipe, self.catalog.settings)
            recipes.admit_on(recipe, model.view, None if model.classifier else model.steps, self.catalog.settings)
            return self._updates(model, recipe, str(recipe), values=True)
        except VisAccelError as error:
            return self._refused(error)

    def _refused(self, error: VisAccelError) -> list[Any]:
        return [gr.skip(), _note(" ".join(str(error).split()), bad=True), *(gr.skip() for _ in self.outputs[2:])]

    def _before(self, text: str) -> Recipe:
        try:
            return recipes.read(text)
        except VisAccelError:
            return Recipe.empty

    def _choice(self, values: Sequence[Any]) -> Choice:
        rest, own = list(values), ("", 1, None)
        if self.samplers:
            own, rest = (rest[0] or "", int(rest[1] or 1), rest[2]), rest[3:]
        switches, options = rest[: len(self.switches)], rest[len(self.switches) :]
        on = tuple(kind.name for (kind, _), value in zip(self.switches, switches, strict=True) if value is True)
        table = {(control.method, control.name): value for (control, _), value in zip(self.controls, options, strict=True)}
        return Choice(*own, methods=on, options=table)

    def _updates(self, model: Model, recipe: Recipe, text: str, *, values: bool) -> list[Any]:
        there = {method.name: method for method in recipe.methods}
        fitting = self._fitting(model)
        chosen = text if text in {value for _, value in fitting} else None
        found = [text, _note(described(model, recipe)), gr.update(choices=fitting, value=chosen)]
        if self.samplers:
            found += self._sampler_updates(model, recipe, values)
        for kind, _ in self.switches:
            why, on = reason(model, recipe, kind.name), kind.name in there
            found.append(gr.update(interactive=on or why is None, info=_info(kind, why), **({"value": on} if values else {})))
        for control, _ in self.controls:
            method = there.get(control.method)
            found.append(gr.update(value=control.shows(value_of(control, method))) if values else gr.skip())
        return found + [gr.update(visible=kind.name in there) for kind, _ in self.groups]

    def _fitting(self, model: Model) -> list[tuple[str, str]]:
        """The presets that this model can have."""
        return [(label, text) for label, text in self.presets if fits(model, text)]

    def _sampler_updates(self, model: Model, recipe: Recipe, values: bool) -> list[Any]:
        sampler = next((method for method in recipe.methods if isinstance(method, Solver)), None)
        why = sampler_reason(recipe)
        fitting = [OWN] + [
            (f"{kind.name} - {model.offers[kind.name].summary}", kind.name)
            for kind in self.samplers
            if model.offers[kind.name].refusal is None
        ]
        steps, schedule = model.steps, "auto"
        names = ["auto"]
        if sampler is not None:
            names = schedule_names(model, type(sampler))
            fixed = isinstance(sampler.schedule, tuple)
            steps = len(sampler.schedule) if fixed else sampler.steps or model.steps
            schedule = None if fixed else str(sampler.schedule)  # type: ignore[assignment]
        settled = {"value": steps} if values or sampler is None else {}
        placed = {"value": schedule} if values or sampler is None else {}
        named = {"value": sampler.name if sampler else ""} if values else {}
        return [
            gr.update(
                choices=fitting,
                interactive=why is None,
                info=why or SAMPLER,
                **named,
            ),
            gr.update(interactive=sampler is not None, **settled),
            gr.update(choices=names, interactive=sampler is not None, **placed),
        ]


def _component(control: Control) -> Any:
    if control.kind == "switch":
        return gr.Checkbox(bool(control.default), label=control.label, info=control.meaning, min_width=150)
    if control.kind == "list":
        return gr.Dropdown(list(control.choices), value=control.default, label=control.label, info=control.meaning, min_width=150)
    bounds = {"minimum": control.low, "maximum": control.high, "step": 1 if control.whole else 0.01}
    hint = "automatic" if control.optional else None
    shown = control.shows(control.default)
    return gr.Number(shown, label=control.label, info=control.meaning, placeholder=hint, min_width=150, **bounds)


def _info(kind: type[Method], why: str | None) -> str:
    text = f"{registry.entries()[kind.name].summary}." if why is None else why
    return text[:1].upper() + text[1:] if why is None else text


def _note(text: str, *, bad: bool = False) -> str:
    """A line on the recipe; what is more than a line is folded away."""
    first, _, rest = text.partition("\n")
    more = f'<details class="va-more"><summary>More</summary>{escape(rest)}</details>' if rest else ""
    return f'<p class="va-note{" va-bad" if bad else ""}" role="status">{escape(first)}</p>{more}'
