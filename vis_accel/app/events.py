"""How events are registered: what touches a model waits in one line, what does not never waits for it."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import gradio as gr
from anyio.to_thread import run_sync

from vis_accel.app import log
from vis_accel.app.catalog import Catalog
from vis_accel.app.pages.status import say
from vis_accel.app.requests import R, Request, read
from vis_accel.app.worker import Stopped, Task
from vis_accel.errors import VisAccelError

__all__ = ["LIGHT", "MODEL", "checked", "followed", "started"]

MODEL_LINE = "model"
MODEL: dict[str, Any] = {"concurrency_id": MODEL_LINE, "concurrency_limit": 1}  # one line for all of them: times must not be spoilt
LIGHT: dict[str, Any] = {
    "concurrency_id": "page", "concurrency_limit": 8, "show_progress": "hidden", "api_visibility": "private",
}  # fmt: skip


# What happens in the browser alone, at once: the line says that the request waits, and it can be stopped while it does; after a refusal or
# a failure, whose reason Gradio shows, it says so. To the browser a run that was stopped has failed too, even twice: there the line stays.
STOPPED = "Stopped."
_SAYS = """() => {{
    const stopped = (window.vaStopped ??= {{}});
    {first}
    return [`<div class="va-status" role="status">${{{words}}}</div>`, {{__type__: 'update', interactive: {interactive}}}];
}}"""


def started(button: Any, event: dict[str, Any], status: Any, stop: Any) -> None:
    """Registers the event of a button that sets a model to work, and what its status line and its stop button do meanwhile.

    Args:
        button: sets it off.
        event: its fn, inputs, outputs and validator.
        status, stop: the line that says how far it is, and the button that ends it.
    """

    def refused(*values: Any) -> list[Any]:
        """Gradio marks the field of a request that is refused, wherever it is on the page; the line says it as well."""
        why = next((part["message"] for part in event["validator"](*values) if not part["is_valid"]), None)
        return [gr.skip()] * 2 if why is None else [say(why), gr.update(interactive=False)]

    quiet = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    button.click(refused, event["inputs"], [status, stop], **LIGHT)
    mine, end = f"stopped[{status._id}]", repr(STOPPED)
    waits = _SAYS.format(first=f"{mine} = false;", words="'<progress></progress><span>Waiting for its turn</span>'", interactive="true")
    failed = _SAYS.format(first="", words=f"'<span>' + ({mine} ? {end} : 'That did not work.') + '</span>'", interactive="false")
    ended = _SAYS.format(first=f"{mine} = true;", words=f"'<span>' + {end} + '</span>'", interactive="false")
    button.click(None, None, [status, stop], js=waits, **quiet)
    found = button.click(**event, api_visibility="private", show_progress="hidden", **MODEL)
    found.failure(None, None, [status, stop], js=failed, **quiet)
    stop.click(None, None, [status, stop], js=ended, **quiet)
    stop.click(None, cancels=[found], api_visibility="private")


def checked(
    kind: type[Request], catalog: Catalog, names: list[str], fields: Callable[[tuple[Any, ...]], dict[str, Any]] | None = None
) -> Callable[..., Any]:
    """A validator for events whose inputs are `names`: refuses a bad request before it waits, at the field that is wrong.

    Args:
        kind: of the request.
        catalog: the models.
        names: of the inputs, in their order.
        fields: from the inputs to the request's fields; None: they are the same.
    """

    def check(*values: Any) -> list[Any]:
        try:
            read(kind, catalog, **(fields(values) if fields else dict(zip(names, values, strict=True))))
        except VisAccelError as error:
            message = str(error).replace("\n", " ")
            wrong = next((name for name in names if message.startswith(name)), names[0])
            return [gr.validate(name != wrong, message if name == wrong else "") for name in names]
        return [gr.validate(True, "") for _ in names]

    check.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # Gradio counts the arguments
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    )
    return check


async def followed(
    what: str,
    kind: type[R],
    catalog: Catalog,
    values: dict[str, Any],
    start: Callable[[R], Task],
    show: Callable[[R, Any, Any], Any],
) -> AsyncGenerator[Any, None]:
    """Reads a request again, starts it, and yields what `show` makes of each update and, last, of the result; logs how it ended.

    It is asynchronous because it mostly waits: only so can Gradio stop it while it does. Whatever takes time runs in a thread.

    Args:
        what: the event's name in the log.
        kind: of the request.
        catalog: the models.
        values: the request's fields.
        start: hands the request to its worker.
        show: (request, update, result) -> outputs; the result is None until the last.

    Raises:
        gr.Error: with a text for visitors: the reason of a refusal, or the number under which the log has what happened.
    """
    entry = log.Entry(what, catalog.settings.log_requests)
    try:
        request = await run_sync(lambda: read(kind, catalog, **values))
        entry.describe(request)
        task = await run_sync(start, request)
        async with aclosing(task.watch()) as updates:
            async for update in updates:
                yield await run_sync(show, request, update, None)
        shown = await run_sync(show, request, None, task.result)
        entry.ended("done")
        yield shown
    except (GeneratorExit, asyncio.CancelledError, Stopped) as error:
        entry.ended("cancelled")
        if isinstance(error, Stopped):
            raise gr.Error(STOPPED, print_exception=False) from None
        raise
    except VisAccelError as error:
        entry.ended("refused", error)
        raise gr.Error(str(error), print_exception=False) from None
    except Exception as error:
        number = uuid.uuid4().hex[:8]
        entry.ended("failed", error, number)
        message = f"Something went wrong here. Whoever runs this page finds it in the log under {number}."
        raise gr.Error(message, print_exception=False) from None
