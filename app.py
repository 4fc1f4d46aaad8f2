"""The demo as a Space runs it: `python app.py`. Options are those of `vis-accel app`."""

from __future__ import annotations

import os

from vis_accel.app import build
from vis_accel.app.settings import Settings

if __name__ == "__main__":
    inside = "SPACE_ID" in os.environ  # on a Space the door is the platform's
    build(Settings(host="0.0.0.0" if inside else "127.0.0.1", port=7860)).launch()  # noqa: S104
