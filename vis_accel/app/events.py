"""How events are registered: what touches a model waits in one line, what does not never waits for it."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Callable, Generator
from typing import Any

import gradio as gr

from vis_accel.app import log
from vis_accel.app.catalog import Catalog
from vis_accel.app.requests import R, Request, read
from vis_accel.app.worker import Stopped, Task
from vis_accel.errors import VisAccelError

__all__ = ["LIGHT", "MODEL", "checked", "followed"]

MODEL_LINE = "model"
MODEL: dict[str, Any] = {"concurrency_id": MODEL_LINE, "concurrency_limit": 1}  # one line for all of them: times must not be spoilt
LIGHT: dict[str, Any] = {
    "concurrency_id": "page", "concurrency_limit": 8, "show_progress": "hidden", "api_visibility": "private",
}  # fmt: skip


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


def followed(
    what: str, kind: type[R], catalog: Catalog, values: dict[str, Any], start: Callable[[R], Task]
) -> Generator[tuple[R, Any, Any], None, None]:
    """Reads a request again, starts it and yields (request, update, None) until (request, None, result); logs how it ended.

    Raises:
        gr.Error: with a text for visitors: the reason of a refusal, or the number under which the log has what happened.
    """
    entry = log.Entry(what, catalog.settings.log_requests)
    try:
        request = read(kind, catalog, **values)
        entry.describe(request)
        task = start(request)
        for update in task.follow():
            yield request, update, None
        entry.ended("done")
        yield request, None, task.result
    except GeneratorExit:
        entry.ended("cancelled")
        raise
    except Stopped:
        entry.ended("stopped")
        raise gr.Error("Stopped.", print_exception=False) from None
    except VisAccelError as error:
        entry.ended("refused", error)
        raise gr.Error(str(error), print_exception=False) from None
    except gr.Error:
        raise
    except Exception as error:
        number = uuid.uuid4().hex[:8]
        entry.ended("failed", error, number)
        raise gr.Error(
            f"Something went wrong here. Whoever runs this page finds it in the log under {number}.", print_exception=False
        ) from None
