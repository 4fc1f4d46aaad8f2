"""In front of everything: bodies that are too large, requests beyond the queue, security headers, and the health endpoint.

Pure ASGI, so that nothing is buffered but what is let through. Gradio's own limits hold for its page; these hold for whoever speaks to the
server directly.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from vis_accel.app import log
from vis_accel.app.settings import Settings

__all__ = ["Guard"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_HEADERS = (
    (b"content-security-policy", b"frame-ancestors 'self' https://huggingface.co https://*.hf.space; object-src 'none'; base-uri 'self'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
_UPLOAD_WINDOW = 600.0  # seconds
_JOINS = ("/gradio_api/queue/join", "/gradio_api/call/")
_CALLS = tuple(f"{_JOINS[1]}{name}" for name in ("generate", "compare", "classify"))
# What the page and the named endpoints need. Gradio has far more (running without the queue, proxies, deep links that are written to the
# disk, recordings, an editor of its own code), and each version adds to it: what is not named here is closed.
_PAGES = ("/", "/healthz", "/config", "/theme.css", "/favicon.ico", "/robots.txt", "/manifest.json", "/login", "/logout", "/login_check",
          "/user")  # fmt: skip
_FILES = ("/assets/", "/static/", "/svelte/", "/pwa_icon")
_GRADIO = ("info", "openapi.json", "app_id", "theme.css", "startup-events", "login_check", "user", "queue/join", "queue/data", "cancel",
           "reset", "upload", "upload_progress")  # fmt: skip
_GRADIO_UNDER = ("heartbeat/", "file=")


def open_to_visitors(path: str) -> bool:
    """Whether there is anything for visitors at this path."""
    short = path.rstrip("/") or "/"
    if not short.startswith("/gradio_api"):
        return short in _PAGES or path.startswith(_FILES)
    inner = short.removeprefix("/gradio_api/")
    if any(short == call or short.startswith(f"{call}/") for call in _CALLS):
        return True
    return inner in _GRADIO or inner.startswith(_GRADIO_UNDER)


class TooLarge(Exception):
    """A body that turned out to be larger than allowed."""


class Guard:
    """The middleware.

    Args:
        app: what is guarded.
        settings: the limits.
        blocks: the page, whose line of waiting requests is looked at.
    """

    def __init__(self, app: Any, settings: Settings, blocks: Any) -> None:
        self.app, self.settings, self.blocks = app, settings, blocks
        self.started = time.time()
        self._uploads: deque[tuple[float, int]] = deque()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Lets a request through, or answers it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path, length = scope["path"], _length(scope)
        if path == "/healthz":
            await _answer(send, 200, {"status": "ok", "waiting": self.waiting(), "seconds": round(time.time() - self.started)})
            return
        if not open_to_visitors(path):
            await _answer(send, 404, {"detail": "There is no such endpoint. Programs use /generate, /compare and /classify: docs/app.md."})
            return
        if scope["method"] in ("POST", "PUT", "PATCH"):
            if length > self.settings.max_body:
                await _answer(send, 413, {"detail": f"At most {self.settings.max_body:,} bytes a request."})
                return
            if path.startswith("/gradio_api/upload") and not self._may_upload(length or self.settings.max_body):
                await _answer(send, 429, {"detail": "Too much was uploaded here in the last ten minutes. Try again later."})
                return
            if path.startswith(_JOINS) and self.waiting() >= self.settings.queue:
                model, receive = await self._wants_model(path, receive)
                if not model:
                    await self._through(scope, receive, send)
                    return
                place = self.waiting() + 1
                text = (
                    f"Busy: {self.waiting()} requests are waiting, and no more can. Yours would be number {place}. Try again in a minute."
                )
                await _answer(send, 503, {"detail": text}, (b"retry-after", b"60"))
                return
        await self._through(scope, receive, send)

    def waiting(self) -> int:
        """Requests for a model that wait for their turn."""
        from vis_accel.app.events import MODEL_LINE

        line = self.blocks._queue.event_queue_per_concurrency_id.get(MODEL_LINE)
        return 0 if line is None else len(line.queue)

    async def _wants_model(self, path: str, receive: Receive) -> tuple[bool, Receive]:
        """Whether a request is for a model, and its body once more; what does not touch a model never waits, and is let through."""
        from vis_accel.app.events import MODEL_LINE

        if not path.startswith(_JOINS[0]):
            return True, receive
        messages, size, more = [], 0, True
        while more and size <= self.settings.max_body:
            messages.append(await receive())
            size, more = size + len(messages[-1].get("body", b"")), messages[-1].get("more_body", False)
        try:
            index = json.loads(b"".join(message.get("body", b"") for message in messages)).get("fn_index")
            model = self.blocks.fns[index].concurrency_id == MODEL_LINE
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            model = False  # what is no request of this page is refused further in
        waiting = iter(messages)

        async def again() -> Message:
            return next(waiting, None) or await receive()

        return model, again

    def _may_upload(self, length: int) -> bool:
        now = time.monotonic()
        while self._uploads and now - self._uploads[0][0] > _UPLOAD_WINDOW:
            self._uploads.popleft()
        if sum(size for _, size in self._uploads) + length > self.settings.upload_quota:
            return False
        self._uploads.append((now, length))
        return True

    async def _through(self, scope: Message, receive: Receive, send: Send) -> None:
        seen, begun, large = 0, False, False

        async def counted() -> Message:
            nonlocal seen, large
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.settings.max_body:
                large = True
                raise TooLarge
            return message

        async def with_headers(message: Message) -> None:
            nonlocal begun
            if large and not begun:  # Gradio takes the exception for a body it cannot parse, and says so; it is answered below
                return
            if message["type"] == "http.response.start":
                begun = True
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            await self.app(scope, counted, with_headers)
        except TooLarge:
            pass
        except Exception as error:  # models run elsewhere: what fails here is a request that Gradio could not read
            log.unreadable(scope["path"], error)
            if not begun and not large:
                await _answer(send, 400, {"detail": "This request cannot be read."})
        if large and not begun:
            await _answer(send, 413, {"detail": f"At most {self.settings.max_body:,} bytes a request."})


def _length(scope: Message) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


async def _answer(send: Send, status: int, body: dict[str, Any], *headers: tuple[bytes, bytes]) -> None:
    data = json.dumps(body).encode()
    found = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode()), *_HEADERS, *headers]
    await send({"type": "http.response.start", "status": status, "headers": found})
    await send({"type": "http.response.body", "body": data})
