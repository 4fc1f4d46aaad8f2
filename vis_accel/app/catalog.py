"""The models a visitor can choose, each loaded once, with its worker, its prepared recipes and the methods that fit it."""

from __future__ import annotations

import inspect
import threading
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from vis_accel import registry
from vis_accel.app.settings import BUNDLED, Settings
from vis_accel.app.variants import Variants
from vis_accel.app.worker import Worker
from vis_accel.errors import UnknownNameError, UsageError
from vis_accel.generation import Job, default_steps
from vis_accel.method import Method
from vis_accel.recipe import Recipe
from vis_accel.zoo.opened import Opened, OpenedClassifier, Placement, is_classifier, open_classifier, open_pipeline

__all__ = ["Catalog", "Model", "Offer", "conflicts"]

# The other half of the library, seen from pipelines and from classifiers: families, and the packages of those that are in both.
_FOREIGN = {False: ("tokens", "depth", "architecture"), True: ("sampler", "guidance", "cache")}
_ELSEWHERE = {False: ("vis_accel.token_pruning.", "vis_accel.early_exit."), True: ("vis_accel.students.",)}
_GUESTS = 2  # models besides the bundled ones that stay loaded


@dataclass(frozen=True)
class Offer:
    """A method, seen from one model.

    Attributes:
        kind: its class.
        summary: one line, of the registry.
        refusal: why it does not fit this model; None: it does.
        foreign: whether it is for the other half of the library, and not worth a line.
    """

    kind: type[Method]
    summary: str
    refusal: str | None
    foreign: bool


class Model:
    """One loaded model.

    Args:
        opened: a pipeline or a classifier, with its name and hash.
        settings: the limits.
    """

    def __init__(self, opened: Opened | OpenedClassifier, settings: Settings) -> None:
        self.opened, self.settings, self.name = opened, settings, opened.name
        self.classifier = isinstance(opened, OpenedClassifier)
        self.target: Any = opened.network if isinstance(opened, OpenedClassifier) else opened.pipeline
        self.worker = Worker(self.name)
        self.variants = Variants(self.target, settings.variants)

    @cached_property
    def view(self) -> Any:
        """The model, described."""
        if self.classifier:
            from vis_accel.vit_models.view import view as vit

            return vit(self.target)
        from vis_accel.pipelines import view

        return view(self.target)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, where the model has any."""
        if isinstance(self.opened, OpenedClassifier):
            return self.opened.classes
        from vis_accel.zoo import describe

        if self.name in BUNDLED:
            return tuple(describe(self.name).classes)
        labels: dict[str, int] = getattr(self.target, "labels", None) or {}
        return tuple(sorted(labels, key=lambda name: labels[name]))

    def takes(self, argument: str) -> bool:
        """Whether the pipeline's call has this argument."""
        return not self.classifier and argument in inspect.signature(type(self.target).__call__).parameters

    @property
    def job(self) -> Job:
        """What the model's card pins."""
        return self.opened.job if isinstance(self.opened, Opened) else Job()

    @property
    def steps(self) -> int:
        """Steps of the pipeline as it comes."""
        return self.job.steps or default_steps(self.target) or 50

    @cached_property
    def offers(self) -> dict[str, Offer]:
        """All methods by name: what fits, and why the others do not."""
        return {name: self._offer(name, entry) for name, entry in registry.entries().items()}

    def _offer(self, name: str, entry: registry.Entry) -> Offer:
        kind = registry.load(name)
        foreign = kind.family in _FOREIGN[self.classifier] or kind.__module__.startswith(_ELSEWHERE[self.classifier])
        refusal: str | None = None
        if kind.family == "compile" and not self.settings.slow_methods:
            refusal = "It compiles for up to a minute before the first result; whoever runs this page has not allowed that."
        try:
            kind().check_target(self.view)
        except UsageError as error:
            refusal = error.message
        return Offer(kind, entry.summary, refusal, foreign and refusal is not None)


def conflicts(chosen: Recipe, kind: type[Method]) -> str | None:
    """Why a method of this kind cannot join the recipe; None if it can, or is in it."""
    if any(type(method) is kind for method in chosen.methods):
        return None
    try:
        Recipe((*chosen.methods, kind()))
    except UsageError as error:
        return error.message
    return None


class Catalog:
    """The models by name; the bundled ones stay, others make room for one another.

    Args:
        settings: which ones visitors may name.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._models: OrderedDict[str, Model] = OrderedDict()
        self._lock = threading.RLock()

    @property
    def pipelines(self) -> list[str]:
        """Bundled models that make images, and allowed ones that are no patterns."""
        return [name for name in self._named() if not is_classifier(name)]

    @property
    def classifiers(self) -> list[str]:
        """Bundled models that classify, and allowed ones that are no patterns."""
        return [name for name in self._named() if is_classifier(name)]

    def _named(self) -> list[str]:
        return [*BUNDLED, *(name for name in self.settings.allow_model if not set(name) & set("*?["))]

    def loaded(self, name: str) -> Model | None:
        """The model, if it is loaded."""
        with self._lock:
            return self._models.get(name)

    def get(self, name: str) -> Model:
        """The model, loaded now if need be.

        Raises:
            UnknownNameError: a model that visitors may not name.
            ModelError: one that is broken.
        """
        if not self.settings.allows(name):
            raise UnknownNameError.of("model here", name, self._named())
        with self._lock:
            if name not in self._models:
                self._make_room()
                self._models[name] = self._open(name)
            self._models.move_to_end(name)
            return self._models[name]

    def _open(self, name: str) -> Model:
        placement = Placement(threads=self.settings.threads)
        opened: Any = open_classifier(name, placement) if is_classifier(name) else open_pipeline(name, Job(), placement)
        return Model(opened, self.settings)

    def _make_room(self) -> None:
        guests = [name for name in self._models if name not in BUNDLED]
        for name in guests[: max(0, len(guests) + 1 - _GUESTS)]:
            self._models.pop(name).worker.close()
