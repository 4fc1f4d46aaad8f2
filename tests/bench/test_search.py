"""A whole search on the stand-in model: what it prints is a recipe, the best of what it tried, and reproducible."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vis_accel import accelerate, load
from vis_accel.cli import main
from vis_accel.errors import DataError, NotApplicableError, UnknownNameError, UsageError
from vis_accel.generation import Job
from vis_accel.pipelines import view
from vis_accel.recipe import Recipe
from vis_accel.samplers.heun import Heun
from vis_accel.samplers.stored import Stored, keep
from vis_accel.schedule_search import search
from vis_accel.trajectories import record

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
    assert any(line.startswith("teacher, heun: 8 of 8") for line in said)
    pipeline = load("cifar10-dit")
    pipeline.set_progress_bar_config(disable=True)
    with accelerate(pipeline, found.recipe):
        image = pipeline(class_labels=[1], generator=torch.Generator().manual_seed(0), output_type="pt").images
    assert bool(image.isfinite().all())


def test_the_teachers_path_is_that_of_heun_knot_by_knot_and_has_a_row_an_image() -> None:
    """Found by a review: the points of the predictor were kept, which are of first order only."""
    pipeline = load("cifar10-dit")
    pipeline.set_progress_bar_config(disable=True)
    before = dict(vars(pipeline))
    job = Job(class_labels=(0, 1, 2), guidance_scale=2.0)
    path = record(pipeline, Heun(steps=4, schedule="karras"), job, range(5), 3)
    assert vars(pipeline) == before
    assert {len(x) for x in (*path.points, *path.denoised)} == {5}
    for k in (1, 2, 3):  # D of a knot and the point of the one before give the predictor; the corrector needs D there, so check the end
        s, t = path.sigmas[k - 1], path.sigmas[k]
        first = (path.points[k - 1] - path.denoised[k - 1]) / s
        predicted = path.denoised[k - 1] + t * first
        assert not torch.allclose(path.points[k], predicted, atol=1e-4)
    s, last = path.sigmas[-2], path.denoised[-1]
    assert s > 0
    assert torch.allclose(path.points[-1], last, atol=1e-5)  # the step to 0 is D at the corrected point


def test_a_search_gives_the_same_twice() -> None:
    assert search("cifar10-dit", "ddim", 3, **SMALL) == search("cifar10-dit", "ddim", 3, **SMALL)


def test_the_command_prints_the_recipe_alone_on_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial

    import vis_accel.schedule_search as module

    monkeypatch.setattr(module, "search", partial(search, trial=4, grid=8, moves=4))
    monkeypatch.setenv("VIS_ACCEL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(SystemExit) as stop:
        main(["schedule", "--calls", "3", "--images", "16", "--output", str(tmp_path / "found.json")])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    facts = json.loads((tmp_path / "found.json").read_text())
    assert out.strip() == facts["recipe"]
    assert facts["model"] == "cifar10-dit"
    assert facts["settings"]["images"] == 16
    pipeline = load("cifar10-dit")
    with accelerate(pipeline, "dpm(steps=3, schedule='searched')"):
        assert list(pipeline.scheduler.solver.schedule) == facts["tried"][0]["knots"]  # by name, from now on


def test_searched_knots_are_found_for_their_network_sampler_and_steps_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIS_ACCEL_CACHE", str(tmp_path))
    pipeline = load("cifar10-dit")
    described = view(pipeline)
    knots = (described.noise.sigma_max, 2.0, 0.5, 0.0)
    kept = keep(Stored(network=described.fingerprint, solver="unipc(order=3)", steps=3, knots=knots))
    with accelerate(pipeline, "unipc(order=3, steps=3, schedule='searched')"):
        assert pipeline.scheduler.solver.schedule == knots
    for other in (
        "unipc(steps=3, schedule='searched')",
        "unipc(order=3, steps=4, schedule='searched')",
        "dpm(steps=3, schedule='searched')",
    ):
        with pytest.raises(NotApplicableError, match="vis-accel schedule --model MODEL --sampler"):
            accelerate(pipeline, other)
    with pytest.raises(UsageError, match="belong to a number of steps"):
        accelerate(pipeline, "dpm(schedule='searched')")
    kept.write_text(kept.read_text().replace('"steps": 3', '"steps": 2'))
    with pytest.raises(DataError, match="other knots than its name says"):
        accelerate(pipeline, "unipc(order=3, steps=3, schedule='searched')")
    kept.write_text("{")
    with pytest.raises(DataError, match="Cannot read"):
        accelerate(pipeline, "unipc(order=3, steps=3, schedule='searched')")


@pytest.mark.parametrize(
    ("solver", "calls", "kind", "says"),
    [
        ("dpm(steps=6)", 3, UsageError, "steps or knots of its own"),
        ("dpm(schedule='karras')", 3, UsageError, "steps or knots of its own"),
        ("dpm", 1, UsageError, "at least 2"),
        ("dpm", 8, UsageError, "below the teacher's 8 steps"),
        ("heun", 3, NotApplicableError, "between the knots"),
        ("ddpm", 3, NotApplicableError, "fresh noise"),
        ("dpn", 3, UnknownNameError, "dpn"),
    ],
)
def test_what_makes_no_sense_is_refused(solver: str, calls: int, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        search("cifar10-dit", solver, calls, **SMALL)
