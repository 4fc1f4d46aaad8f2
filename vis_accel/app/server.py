"""Serves the page: one process, no telemetry, limits that hold on the raw API."""

from __future__ import annotations

import os
import tempfile
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vis_accel.errors import MissingDependencyError, UsageError

if TYPE_CHECKING:
    from vis_accel.app.settings import Settings

__all__ = ["Demo", "build", "refuse_environment", "require_gradio"]

# What would open a door without a word on the command line.
_REFUSED = ("GRADIO_SHARE", "GRADIO_MCP_SERVER", "GRADIO_VIBE_MODE", "GRADIO_ALLOWED_PATHS", "GRADIO_DEBUG", "GRADIO_NUM_WORKERS")


class Demo:
    """The page and the server around it.

    Args:
        settings: limits and places.
        blocks: the page.
        catalog: its models.
    """

    def __init__(self, settings: Settings, blocks: Any, catalog: Any) -> None:
        self.settings, self.blocks, self.catalog = settings, blocks, catalog

    def launch(self, *, block: bool = True) -> str:
        """Serves until interrupted, or in the background, and returns the address.

        Raises:
            UsageError: the port is taken, or the environment asks Gradio for what only the command line may.
        """
        from starlette.middleware import Middleware

        from vis_accel.app import log
        from vis_accel.app.look import CSS, theme
        from vis_accel.app.middleware import Guard

        refuse_environment()
        log.set_up()
        settings = self.settings
        self.blocks.queue(max_size=4 * settings.queue + 100, api_open=False, default_concurrency_limit=1)
        try:
            _, url, _ = self.blocks.launch(
                server_name=settings.host, server_port=settings.port, share=settings.share, auth=settings.auth, show_error=False,
                quiet=True, prevent_thread_lock=not block, max_threads=16, allowed_paths=[], max_file_size=settings.max_upload,
                enable_monitoring=False, mcp_server=False, pwa=False, ssr_mode=False, state_session_capacity=200, strict_cors=True,
                footer_links=["api", "settings"], theme=theme(), css=CSS, num_workers=0, run_history=False,
                app_kwargs={"middleware": [Middleware(Guard, settings=settings, blocks=self.blocks)]},
            )  # fmt: skip
        except OSError as error:
            raise UsageError(f"Cannot listen on {settings.host}, port {settings.port}: {error}", hint="another --port") from error
        return str(url)

    def close(self) -> None:
        """Stops serving."""
        self.blocks.close(verbose=False)


def build(settings: Settings | None = None) -> Demo:
    """The demo, with its bundled models loaded, ready to be launched.

        vis_accel.app.build().launch()

    Args:
        settings: what is allowed; by default what suits a small machine and strangers.

    Raises:
        MissingDependencyError: gradio is not installed.
    """
    require_gradio()
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported: it asks for its newest version otherwise
    os.environ.setdefault("GRADIO_TEMP_DIR", tempfile.mkdtemp(prefix="vis-accel-app-"))
    from vis_accel.app.catalog import Catalog
    from vis_accel.app.page import page
    from vis_accel.app.settings import Settings

    settings = settings or Settings()
    catalog = Catalog(settings)
    return Demo(settings, page(catalog), catalog)


def refuse_environment() -> None:
    """Raises UsageError if a variable asks Gradio for what only the command line may."""
    for name in _REFUSED:
        if os.environ.get(name, "").lower() not in ("", "0", "false"):
            raise UsageError(f"The variable {name} is set; the demo does not start with it.", hint=f"unset {name}")


def require_gradio() -> None:
    """Raises MissingDependencyError, with the line that installs it, if gradio is not there; imports nothing."""
    if find_spec("gradio") is None:
        raise MissingDependencyError("The demo needs gradio.", hint="pip install 'vis-accel[app]'")
