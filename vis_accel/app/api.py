"""The named endpoints: /generate, /compare and /classify, for programs. Docs and examples: docs/app.md.

    from gradio_client import Client
    client = Client("http://127.0.0.1:7860")
    client.predict(model="cifar10-dit", recipe="dpm(steps=10)", seed=3, api_name="/generate")

Each streams `{"done": 3, "total": 10}` while it works, and its last value is the result. Pictures are PNG in data URLs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gradio as gr

from vis_accel.app import reproduce
from vis_accel.app.catalog import Catalog
from vis_accel.app.classifying import Answer, Classified, start_classify
from vis_accel.app.events import MODEL, checked, followed
from vis_accel.app.making import Compared, Made, start_compare, start_generate
from vis_accel.app.pictures import data_uri, difference
from vis_accel.app.requests import ClassifyRequest, CompareRequest, GenerateRequest, Request
from vis_accel.app.uploads import from_text
from vis_accel.app.watching import Progress
from vis_accel.errors import VisAccelError

__all__ = ["offer"]


def offer(blocks: gr.Blocks, catalog: Catalog) -> None:
    """Registers the endpoints on the page that is being built."""
    # Any return annotation of a generator is read by Gradio as the type of one value, hence `dict` below.

    def generate(  # type: ignore[misc]
        model: str = "cifar10-dit",
        recipe: str = "none",
        seed: int = 0,
        count: int = 4,
        classes: list[int] = [],  # noqa: B006 - Gradio reads the default; it is never written to
        prompt: str = "",
        guidance: float | None = None,
        steps: int | None = None,
        size: int | None = None,
    ) -> dict:  # type: ignore[type-arg]
        """Pictures of one recipe: `pictures`, `seconds`, `calls`, `nfe`, and the `command` and `python` that make them again."""
        values = {key: value for key, value in locals().items() if key != "catalog"}
        for request, update, made in followed("generate", GenerateRequest, catalog, values, lambda r: start_generate(r, catalog)):
            yield _progress(update) if made is None else _made(made) | _again(request)

    def compare(  # type: ignore[misc]
        model: str = "cifar10-dit",
        first: str = "none",
        second: str = "dpm(steps=10)",
        seed: int = 0,
        count: int = 4,
        classes: list[int] = [],  # noqa: B006
        prompt: str = "",
        guidance: float | None = None,
        steps: int | None = None,
        size: int | None = None,
    ) -> dict:  # type: ignore[type-arg]
        """Two recipes on the same seeds: `first`, `second`, `difference`, `ratio` with its interval, `psnr`, `ssim`, `identical`."""
        values = {key: value for key, value in locals().items() if key != "catalog"}
        for request, update, found in followed("compare", CompareRequest, catalog, values, lambda r: start_compare(r, catalog)):
            yield _progress(update) if found is None else _compared(found) | _again(request)

    def classify(image: str, model: str = "cifar10-vit", recipe: str = "none") -> dict:  # type: ignore[type-arg, misc]
        """A picture (base64 or a data URL) classified plainly and under a recipe: `plain`, `fast`, `ratio`, `exits`, `stages`."""

        def start(request: ClassifyRequest) -> Any:
            return start_classify(request, from_text(image, catalog.settings), catalog)

        for _, update, found in followed("classify", ClassifyRequest, catalog, {"model": model, "recipe": recipe}, start):
            yield _progress(update) if found is None else _classified(found)

    def whole(given: tuple[Any, ...]) -> dict[str, Any]:
        if not isinstance(given[0], str):
            raise VisAccelError("image: must be a text, base64 or a data URL")
        try:
            from_text(given[0], catalog.settings)
        except VisAccelError as error:
            error.message = error.message if error.message.startswith("image") else f"image: {error.message}"
            raise
        return {"model": given[1], "recipe": given[2]}

    _register(blocks, generate, GenerateRequest, catalog, None)
    _register(blocks, compare, CompareRequest, catalog, None)
    _register(blocks, classify, ClassifyRequest, catalog, whole)


def _register(
    blocks: gr.Blocks, function: Callable[..., Any], kind: type[Request], catalog: Catalog, fields: Callable[..., dict[str, Any]] | None
) -> None:
    """`gr.api` takes no validator, so it is put on the function it made."""
    before = set(blocks.fns)
    gr.api(function, api_name=function.__name__, **MODEL)
    (made,) = set(blocks.fns) - before
    names = list(function.__annotations__)
    names.remove("return")
    blocks.fns[made].validator = checked(kind, catalog, names, fields)


def _progress(update: Progress | None) -> dict[str, Any]:
    return {"done": 0, "total": 0} if update is None else {"done": update.done, "total": update.total, "stage": update.stage}


def _again(request: GenerateRequest | CompareRequest) -> dict[str, Any]:
    return {"command": reproduce.command(request), "python": reproduce.python(request), "link": reproduce.link(request)}


def _made(made: Made) -> dict[str, Any]:
    pictures = [data_uri(picture) for picture in made.pictures]
    return {"pictures": pictures, "seconds": made.seconds, "calls": made.calls, "nfe": made.nfe}


def _compared(found: Compared) -> dict[str, Any]:
    ratio = {"value": found.ratio.value, "low": found.ratio.low, "high": found.ratio.high, "rounds": found.ratio.n}
    first, second = (_made(one) | {"seconds": time} for one, time in zip((found.first, found.second), found.seconds, strict=True))
    scores = {"psnr": found.psnr, "ssim": found.ssim, "identical": found.identical}
    gap = [data_uri(picture) for picture in difference(found.first.pictures, found.second.pictures)]
    return {"first": first, "second": second, "difference": gap, "ratio": ratio, "unstable": list(found.unstable), **scores}


def _classified(found: Classified) -> dict[str, Any]:
    def answer(one: Answer) -> dict[str, Any]:
        return {"top": [{"class": name, "probability": share} for name, share in one.top], "seconds": one.seconds}

    ratio = {"value": found.ratio.value, "low": found.ratio.low, "high": found.ratio.high, "rounds": found.ratio.n}
    stages = [
        {"block": stage.block, "tokens": stage.tokens, "start": stage.start, "dropped": stage.dropped, "picture": data_uri(stage.picture)}
        for stage in found.stages
    ]
    both = {"plain": answer(found.plain), "fast": answer(found.fast)}
    return {**both, "ratio": ratio, "exits": list(found.exits), "stages": stages, "methods": list(found.lines)}
