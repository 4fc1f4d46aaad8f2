"""What a visitor asks for, as pydantic models: read before the request waits, and again before it runs.

    read(GenerateRequest, catalog, model="cifar10-dit", recipe="dpm(steps=10)", seed=3)

Numbers are strict: no NaN, no text, True is no number; 5.0 is read as 5, since that is what a browser sends.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, TypeVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from vis_accel.app import recipes
from vis_accel.app.catalog import Catalog
from vis_accel.app.settings import Settings
from vis_accel.errors import UsageError, VisAccelError, shown
from vis_accel.generation import Job

__all__ = ["ClassifyRequest", "CompareRequest", "GenerateRequest", "Request", "read"]

LAST_SEED = 2**31 - 1
LONGEST_PROMPT = 500
LARGEST = 2.0**53  # beyond that, floats skip whole numbers


def _number(value: object) -> object:
    """Refuses what is not a finite number."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -LARGEST < value < LARGEST:  # NaN is on neither side
        raise ValueError(f"must be a finite number; got {shown(value)}")
    return value


def _whole(value: object) -> object:
    """A whole number as an int."""
    value = _number(value)
    if isinstance(value, float):
        if value != int(value):
            raise ValueError(f"must be a whole number; got {value}")
        return int(value)
    return value


Whole = Annotated[int, BeforeValidator(_whole)]
Real = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, Field(strict=True, max_length=recipes.LONGEST)]


class Request(BaseModel):
    """Base of all requests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: Annotated[str, Field(strict=True, max_length=200)]

    @field_validator("model")
    @classmethod
    def _known(cls, name: str, info: ValidationInfo) -> str:
        if not _settings(info).allows(name):
            raise ValueError(f"there is no model {shown(name)} here; choose one of {', '.join(_catalog(info)._named())}")
        return name


class _Pictures(Request):
    """What requests for pictures have in common.

    Attributes:
        model: a name.
        seed: of picture 0; picture i has seed + i.
        count: of pictures.
        classes: numbers of classes, for models that take them; picture i gets the i-th, counted round.
        prompt: for models that take text.
        guidance: None: what the model's card pins.
        steps: of the stock pipeline, and of samplers that have no number of their own; None: the model's.
        size: height and width in pixels, for models that take them.
    """

    seed: Annotated[Whole, Field(ge=0, le=LAST_SEED)] = 0
    count: Annotated[Whole, Field(ge=1)] = 4
    classes: tuple[Whole, ...] = Field(default=(), max_length=1024)
    prompt: Annotated[str, Field(strict=True, max_length=LONGEST_PROMPT)] = ""
    guidance: Annotated[Real, Field(ge=0, le=100)] | None = None
    steps: Annotated[Whole, Field(ge=1)] | None = None
    size: Annotated[Whole, Field(ge=8)] | None = None

    @field_validator("classes", mode="before")
    @classmethod
    def _several(cls, value: object) -> object:
        return () if value is None else value

    @field_validator("prompt", mode="before")
    @classmethod
    def _absent(cls, value: object) -> object:
        return "" if value is None else value

    @model_validator(mode="after")
    def _within(self, info: ValidationInfo) -> Any:
        settings = _settings(info)
        for name, limit in (("count", settings.max_images), ("steps", settings.max_steps)):
            value = getattr(self, name)
            if value is not None and value > limit:
                raise ValueError(f"{name} must be at most {limit}; got {value}")
        if self.size is not None and self.size**2 > settings.max_pixels:
            raise ValueError(f"size must be at most {math.isqrt(settings.max_pixels)}; got {self.size}")
        return self

    def job(self, catalog: Catalog) -> Job:
        """The same in the library's words, completed by what the model's card pins."""
        model = catalog.get(self.model)
        pinned, text = model.job, model.takes("prompt")
        return Job(
            seed=self.seed,
            class_labels=self.classes or pinned.class_labels,
            prompts=(self.prompt,) if text or self.prompt else (),
            guidance_scale=pinned.guidance_scale if self.guidance is None else self.guidance,
            steps=self.steps or model.steps,
            height=self.size,
            width=self.size,
        )

    def recipes(self) -> tuple[str, ...]:
        """The texts of its recipes."""
        raise NotImplementedError

    def check(self, catalog: Catalog) -> None:
        """Refuses what the model does not take; loads the model if it must.

        Raises:
            VisAccelError: with the reason.
        """
        model = catalog.get(self.model)
        if model.classifier:
            raise UsageError(f"{self.model} classifies pictures; it makes none.", hint=f"choose one of {', '.join(catalog.pipelines)}")
        self.job(catalog).check(model.target)
        for text in self.recipes():
            recipes.admit_on(recipes.read(text), model.view, self.steps or model.steps, catalog.settings)


class GenerateRequest(_Pictures):
    """Pictures under one recipe; `beside`: and then those of the model as it comes, from the same seeds."""

    recipe: Text = "none"
    beside: Annotated[bool, Field(strict=True)] = False

    @field_validator("recipe")
    @classmethod
    def _readable(cls, text: str, info: ValidationInfo) -> str:
        return _canonical(text, info)

    def recipes(self) -> tuple[str, ...]:
        return (self.recipe,)


class CompareRequest(_Pictures):
    """The same pictures under two recipes."""

    first: Text = "none"
    second: Text = "dpm(steps=10)"

    @field_validator("first", "second")
    @classmethod
    def _readable(cls, text: str, info: ValidationInfo) -> str:
        return _canonical(text, info)

    def recipes(self) -> tuple[str, ...]:
        return (self.first, self.second)


class ClassifyRequest(Request):
    """A picture, classified plainly and under a recipe. The picture itself travels beside the request."""

    recipe: Text = "none"

    @field_validator("recipe")
    @classmethod
    def _readable(cls, text: str, info: ValidationInfo) -> str:
        return _canonical(text, info)

    def check(self, catalog: Catalog) -> None:
        """Refuses what the model does not take."""
        model = catalog.get(self.model)
        if not model.classifier:
            message = f"{self.model} makes pictures; it classifies none."
            raise UsageError(message, hint=f"choose one of {', '.join(catalog.classifiers)}")
        recipes.admit_on(recipes.read(self.recipe), model.view, None, catalog.settings)


R = TypeVar("R", bound=Request)


def read(kind: type[R], catalog: Catalog, **values: object) -> R:
    """The request, read and checked against the limits and the model.

    Raises:
        UsageError: everything that is wrong with it, in one sentence a visitor understands.
    """
    try:
        found: R = kind.model_validate(values, context=catalog)
    except ValidationError as error:
        raise UsageError("; ".join(map(_sentence, error.errors()[:5])) + ".") from None
    found.check(catalog)
    return found


def _canonical(text: str, info: ValidationInfo) -> str:
    try:
        recipe = recipes.read(text)
        recipes.admit(recipe, _settings(info))
    except VisAccelError as error:
        raise ValueError(str(error).replace("\n\n", " ")) from None
    return str(recipe)


def _sentence(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ").rstrip(".")
    if error["type"] != "value_error":
        message = f"{message[0].lower()}{message[1:]}; got {shown(error['input'])}"
    return f"{place}: {message}" if place else message


def _catalog(info: ValidationInfo) -> Catalog:
    return cast("Catalog", info.context)


def _settings(info: ValidationInfo) -> Settings:
    return _catalog(info).settings
