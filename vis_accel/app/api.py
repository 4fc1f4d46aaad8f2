"""The named endpoints: /generate, /compare and /classify, for programs. Docs and examples: docs/app.md.

    from gradio_client import Client
    client = Client("http://127.0.0.1:7860")
    client.predict(model="cifar10-dit", recipe="dpm(steps=10)", seed=3, api_name="/generate")

Each streams `{"done": 3, "total": 10}` while it works, and its last value is the result. Pictures are PNG in data URLs.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr

from vis_accel.app import reproduce
from vis_accel.app.catalog import Catalog
from vis_accel.app.classifying import Answer, Classified, start_classify
from vis_accel.app.events import MODEL, checked, followed
from vis_accel.app.making import Compared, Made, likeness, start_compare, start_generate
from vis_accel.app.pictures import data_uri, difference
from vis_accel.app.requests import ClassifyRequest, CompareRequest, GenerateRequest, Request
from vis_accel.app.uploads import from_text
from vis_accel.app.watching import Progress
from vis_accel.app.worker import Task
from vis_accel.errors import VisAccelError
from vis_accel.eval.interval import Interval

__all__ = ["offer"]


def offer(blocks: gr.Blocks, catalog: Catalog) -> None:
    """Registers the endpoints on the page that is being built."""

    def begin_generate(request: GenerateRequest) -> Task:
        return start_generate(request, catalog)

    def begin_compare(request: CompareRequest) -> Task:
        return start_compare(request, catalog)

    async def generate(
        model: str = "cifar10-dit",
        recipe: str = "none",
        seed: int = 0,
        count: int = 4,
        classes: list[int] = [],  # noqa: B006 - Gradio reads the default; it is never written to
        prompt: str = "",
        guidance: float | None = None,
        steps: int | None = None,
        size: int | None = None,
        beside: bool = False,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Pictures of one recipe: `pictures`, `seconds`, `calls`, `nfe`, and the `command` and `python` that make them again; with
        `beside` also `stock`, the same of the model as it comes, `speed_up`, `psnr` and `ssim`."""
        given = {"model": model, "recipe": recipe, "seed": seed, "count": count, "classes": classes, "prompt": prompt}
        given |= {"guidance": guidance, "steps": steps, "size": size, "beside": beside}
        async with aclosing(followed("generate", GenerateRequest, catalog, given, begin_generate, _made)) as outputs:
            async for output in outputs:
                yield output

    async def compare(
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
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Two recipes on the same seeds: `first`, `second`, `difference`, `ratio` with its interval, `psnr`, `ssim`, `identical`."""
        given = {"model": model, "first": first, "second": second, "seed": seed, "count": count, "classes": classes, "prompt": prompt}
        given |= {"guidance": guidance, "steps": steps, "size": size}
        async with aclosing(followed("compare", CompareRequest, catalog, given, begin_compare, _compared)) as outputs:
            async for output in outputs:
                yield output

    async def classify(image: str, model: str = "cifar10-vit", recipe: str = "none") -> AsyncGenerator[dict[str, Any], None]:
        """A picture (base64 or a data URL) classified plainly and under a recipe: `plain`, `fast`, `ratio`, `exits`, `stages`."""

        def start(request: ClassifyRequest) -> Task:
            return start_classify(request, from_text(image, catalog.settings), catalog)

        given = {"model": model, "recipe": recipe}
        async with aclosing(followed("classify", ClassifyRequest, catalog, given, start, _classified)) as outputs:
            async for output in outputs:
                yield output

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


def _made(request: GenerateRequest, update: Progress | None, made: Made | None) -> dict[str, Any]:
    if made is None:
        return _progress(update)
    found = _one(made) | _again(request)
    if made.stock is not None:
        found |= {"stock": _one(made.stock), "speed_up": made.stock.seconds / made.seconds}
        found |= dict(zip(("psnr", "ssim"), likeness(made.stock.pictures, made.pictures), strict=True))
    return found


def _one(made: Made) -> dict[str, Any]:
    pictures = [data_uri(picture) for picture in made.pictures]
    return {"pictures": pictures, "seconds": made.seconds, "calls": made.calls, "nfe": made.nfe}


def _compared(request: CompareRequest, update: Progress | None, found: Compared | None) -> dict[str, Any]:
    if found is None:
        return _progress(update)
    first, second = (_one(one) | {"seconds": time} for one, time in zip((found.first, found.second), found.seconds, strict=True))
    scores = {"psnr": found.psnr, "ssim": found.ssim, "identical": found.identical}
    gap = [data_uri(picture) for picture in difference(found.first.pictures, found.second.pictures)]
    both = {"first": first, "second": second, "difference": gap, "ratio": _ratio(found.ratio), "unstable": list(found.unstable)}
    return both | scores | _again(request)


def _ratio(ratio: Interval) -> dict[str, Any]:
    return {"value": ratio.value, "low": ratio.low, "high": ratio.high, "rounds": ratio.n}


def _classified(request: ClassifyRequest, update: Progress | None, found: Classified | None) -> dict[str, Any]:
    if found is None:
        return _progress(update)

    def answer(one: Answer) -> dict[str, Any]:
        return {"top": [{"class": name, "probability": share} for name, share in one.top], "seconds": one.seconds}

    stages = [
        {"block": stage.block, "tokens": stage.tokens, "start": stage.start, "dropped": stage.dropped, "picture": data_uri(stage.picture)}
        for stage in found.stages
    ]
    both = {"plain": answer(found.plain), "fast": answer(found.fast)}
    return {**both, "ratio": _ratio(found.ratio), "exits": list(found.exits), "stages": stages, "methods": list(found.lines)}
