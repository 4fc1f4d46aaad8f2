"""The knots that ship belong to the models that ship."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vis_accel import accelerate, load
from vis_accel.samplers.stored import SHIPPED

FILES = sorted((SHIPPED / "schedules").glob("*.json"))


@pytest.mark.parametrize("name", ["cifar10-unet"])
def test_searched_is_a_word_for_the_shipped_knots(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setenv("VIS_ACCEL_CACHE", str(tmp_path))
    pipeline: Any = load(name)
    with accelerate(pipeline, "dpm(steps=6, schedule='searched')"):
        knots = pipeline.scheduler.solver.schedule
    assert any(tuple(json.loads(path.read_text())["knots"]) == knots for path in FILES)
