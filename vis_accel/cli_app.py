"""`vis-accel app`: the demo, with the operator's limits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from vis_accel.errors import UsageError

__all__ = ["app"]

AUTH = "VIS_ACCEL_APP_AUTH"


def app(
    host: Annotated[str, typer.Option("--host", help="Address to listen on. 0.0.0.0: every one this machine has.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 7860,
    share: Annotated[bool, typer.Option("--share", help="Open a public tunnel through gradio.live.")] = False,
    auth: Annotated[Path | None, typer.Option("--auth", help=f"File with user:password in it; or the variable {AUTH}.")] = None,
    allow_model: Annotated[
        list[str] | None, typer.Option("--allow-model", help="Hub id or folder visitors may name, * allowed; may be repeated.")
    ] = None,
    max_images: Annotated[int, typer.Option("--max-images", min=1, max=1024, help="In one request.")] = 16,
    max_steps: Annotated[int, typer.Option("--max-steps", min=1, max=1000, help="Solver steps in one run.")] = 100,
    max_calls: Annotated[int, typer.Option("--max-calls", min=1, max=10_000, help="Evaluations of the network in one run.")] = 400,
    max_pixels: Annotated[int, typer.Option("--max-pixels", min=1024, max=100_000_000, help="Of a picture, dropped or made.")] = 4_000_000,
    queue: Annotated[int, typer.Option("--queue", min=1, max=1000, help="Requests that may wait; others are told to come back.")] = 16,
    card: Annotated[Path | None, typer.Option("--card", help="card.json for the frontier, or its folder.")] = None,
    slow_methods: Annotated[bool, typer.Option("--slow-methods", help="Allow compilation, a minute before the first result.")] = False,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Write prompts and recipes to the log too.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads.")] = None,
) -> None:
    """Open a page that shows what speed costs: generate, compare, classify."""
    from vis_accel.app import build
    from vis_accel.app.server import require_gradio

    require_gradio()
    from vis_accel.app.settings import Settings

    user = _auth(auth)
    if user is None and (share or host not in ("127.0.0.1", "localhost", "::1")):
        typer.echo(f"anybody who reaches {'the tunnel' if share else host} can use this page; --auth FILE asks for a password", err=True)
    limits: dict[str, Any] = {
        "max_images": max_images, "max_steps": max_steps, "max_calls": max_calls, "max_pixels": max_pixels, "queue": queue,
    }  # fmt: skip
    demo = build(
        Settings(
            host=host,
            port=port,
            share=share,
            auth=user,
            allow_model=tuple(allow_model or ()),
            card=card,
            slow_methods=slow_methods,
            log_requests=log_requests,
            threads=threads,
            **limits,
        )
    )
    typer.echo(f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}   Ctrl-C stops it", err=True)  # noqa: S104 - read, not bound
    demo.launch()


def _auth(file: Path | None) -> tuple[str, str] | None:
    """User and password; never from the command line, which every user of the machine can read."""
    text = os.environ.get(AUTH, "")
    if file is not None:
        try:
            text = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"Cannot read {file}: {error}") from error
    elif not text:
        return None
    user, colon, password = text.partition(":")
    if not (user and colon and password):
        raise UsageError(f"{file or AUTH} must hold user:password.")
    return user, password
