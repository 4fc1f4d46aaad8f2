"""A whole search on the stand-in model: what it prints is a recipe, the best of what it tried, and reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vis_accel import accelerate, load
from vis_accel.cli import main
from vis_accel.errors import NotApplicableError, UnknownNameError, UsageError
from vis_accel.recipe import Recipe
from vis_accel.search import search

pytestmark = pytest.mark.usefixtures("standin")
SMALL = {"images": 8, "trial": 4, "grid": 8, "moves": 6, "batch": 3}


def test_the_recipe_is_the_best_of_what_was_tried_and_runs() -> None:
    said: list[str] = []
    found = search("cifar10-dit", "dpm", 3, progress=said.append, **SMALL)
    assert [one.error for one in found.tried] == sorted(one.error for one in found.tried)
    assert {"trailing", "logsnr", "karras", "searched, power 1", "searched, refined"} <= {one.name for one in found.tried}
    (method,) = Recipe.parse(found.recipe).methods
    assert method.schedule == found.tried[0].knots  # type: ignore[attr-defined]
    assert all(len(one.knots) == 4 for one in found.tried)
    assert any(line.startswith("teacher: 8 of 8") for line in said)
    pipeline = load("cifar10-dit")
    pipeline.set_progress_bar_config(disable=True)
    with accelerate(pipeline, found.recipe):
        image = pipeline(class_labels=[1], generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert bool(image.isfinite().all())


def test_a_search_gives_the_same_twice_and_leaves_the_pipeline_alone() -> None:
    assert search("cifar10-dit", "ddim", 3, **SMALL) == search("cifar10-dit", "ddim", 3, **SMALL)


def test_the_command_prints_the_recipe_alone_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    import vis_accel.search as module

    monkeypatch.setattr(module, "search", partial(search, trial=4, grid=8, moves=4))
    with pytest.raises(SystemExit) as stop:
        main(["schedule", "--calls", "3", "--images", "16", "--output", str(tmp_path / "found.json")])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    facts = json.loads((tmp_path / "found.json").read_text())
    assert out.strip() == facts["recipe"]
    assert facts["model"] == "cifar10-dit"
    assert facts["settings"]["images"] == 16


@pytest.mark.parametrize(
    ("solver", "calls", "kind", "says"),
    [
        ("dpm(steps=6)", 3, UsageError, "steps or knots of its own"),
        ("dpm(schedule='karras')", 3, UsageError, "steps or knots of its own"),
        ("dpm", 1, UsageError, "at least 2"),
        ("dpm", 8, UsageError, "below the teacher's 8 steps"),
        ("heun", 3, NotApplicableError, "between the knots"),
        ("dpn", 3, UnknownNameError, "dpn"),
    ],
)
def test_what_makes_no_sense_is_refused(solver: str, calls: int, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        search("cifar10-dit", solver, calls, **SMALL)
