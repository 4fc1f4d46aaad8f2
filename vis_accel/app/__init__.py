"""The demo: a page where speed is dragged against quality, with limits that hold for strangers. `pip install 'vis-accel[app]'`.

    from vis_accel.app import build
    build().launch()

Importing this package loads neither gradio nor PyTorch; `build` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vis_accel.app.server import Demo
    from vis_accel.app.settings import Settings

__all__ = ["build"]


def build(settings: Settings | None = None) -> Demo:
    """The demo, with its bundled models loaded, ready to be launched; see `vis_accel.app.server.build`."""
    from vis_accel.app.server import build as build_demo

    return build_demo(settings)


def __getattr__(name: str) -> Any:
    if name == "Settings":
        from vis_accel.app.settings import Settings

        return Settings
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
