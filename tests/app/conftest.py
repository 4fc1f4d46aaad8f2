"""One server for all tests of the demo, on loopback, with the bundled models; needs gradio, without which each file skips
itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

LIMITS = {"max_images": 8, "max_steps": 60, "queue": 3, "timing_seconds": 0.5}


@pytest.fixture(scope="session")
def catalog() -> Any:
    """The bundled models, loaded when asked for, without a page."""
    from vis_accel.app.catalog import Catalog
    from vis_accel.app.settings import Settings

    return Catalog(Settings(**LIMITS))


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The page behind a running server."""
    from vis_accel.app import build
    from vis_accel.app.settings import Settings

    os.environ["GRADIO_TEMP_DIR"] = str(tmp_path_factory.mktemp("gradio"))
    made = build(Settings(port=None, **LIMITS))
    made.url = made.launch(block=False).rstrip("/")
    yield made
    made.close()
    del os.environ["GRADIO_TEMP_DIR"]
