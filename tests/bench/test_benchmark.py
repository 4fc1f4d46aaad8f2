"""`bench` end to end on the stand-in models: rows, counters, resumption, refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vis_accel import measuring
from vis_accel.benchmark import Settings, Watcher, bench, preview
from vis_accel.contenders import Stage
from vis_accel.errors import NoEffectError, UsageError
from vis_accel.generation import Job, generate
from vis_accel.recipe import Recipe
from vis_accel.record import Card, Record
from vis_accel.zoo import describe, load
from vis_accel.zoo.measured import feature_net, save_features, shipped_baselines
from vis_accel.zoo.opened import Placement


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timing that takes no time: the figures are not looked at here."""
    monkeypatch.setattr(measuring, "ROUNDS", 1)
    monkeypatch.setattr(measuring, "PROBE", 4)


def settings(**changes: object) -> Settings:
    return Settings(**{"samples": 120, "batch": 40, "timing_batch": 2, **changes})  # type: ignore[arg-type]


def test_a_card_has_both_baselines_and_every_recipe_with_counted_calls(standin: Path) -> None:
    rows: list[Record] = []
    watcher = Watcher(row=rows.append)
    card = bench("cifar10-dit", ["dpm(steps=3)", "heun(steps=3)"], settings=settings(output=standin / "out"), watcher=watcher)
    assert [row.recipe for row in card.rows] == ["stock DDIM, 10 steps", "stock DPM++ 2M, 20 steps", "dpm(steps=3)", "heun(steps=3)"]
    assert [row.counters["calls"] for row in card.rows] == [10, 20, 3, 5]
    assert [row.counters["nfe"] for row in card.rows] == [20, 40, 6, 10]  # guided: two rows a call
    assert [row.recipe for row in rows] == [row.recipe for row in card.rows]
    assert all(row.n == 120 and row.seeds == "0..119" and row.speed is not None for row in card.rows)
    work = [row.counters["GMACs"] for row in card.rows]
    assert work[2] == pytest.approx(work[0] * 0.3, rel=1e-2)  # type: ignore[operator]
    assert "PSNR[n=4]" in card.records[0].quality
    assert "KID" in card.baseline.quality
    assert not any(name.startswith("FID") for name in card.baseline.quality)  # 120 images are too few for 64 features
    assert Card.load(standin / "out") == card
    assert (standin / "out" / "card.png").stat().st_size > 10_000
    assert len(list((standin / "out" / "samples").glob("*.png"))) == 4
    assert not list((standin / "out").rglob("*.tmp*"))


def test_an_fid_comes_with_interval_floor_and_verdict_and_claims_nothing_at_small_n(standin: Path) -> None:
    card = bench("cifar10-dit", ["ddim(steps=10)"], settings=settings(samples=1300, batch=100))
    row = card.records[-1]
    fid = row.quality["FID[cifar10-features]"]
    assert fid.value is not None
    assert fid.low is not None
    assert fid.low < fid.value < fid.high  # type: ignore[operator]
    assert isinstance(card.reference["floor"], float)
    difference = row.quality["FID[cifar10-features] difference"].value
    assert difference == pytest.approx(0, abs=1e-3)  # the same mathematics as the stock sampler, from the same seeds
    assert row.verdict is not None
    assert row.verdict.startswith("n too small")
    assert row.quality["PSNR[n=4]"].value > 45  # type: ignore[operator]


def test_rows_and_work_are_those_that_are_evaluated(standin: Path) -> None:
    recipes = ["dpm(steps=4)", "guidance-cutoff(share=0.5) + dpm(steps=4)", "guidance-reuse(every=4) + dpm(steps=4)"]
    rows = bench("cifar10-dit", recipes, settings=settings(samples=4)).records[1:]
    assert [row.counters["calls"] for row in rows] == [4, 4, 4]
    assert [row.counters["nfe"] for row in rows] == [8, 6, 5]
    work = [row.counters["GMACs"] for row in rows]
    assert [one / work[0] for one in work] == pytest.approx([1, 6 / 8, 5 / 8], rel=1e-2)  # type: ignore[operator]
    told = [[note for note in row.notes if note.startswith("alone: ")] for row in rows]
    assert not told[0]
    assert all(len(lines) == 1 and "dpm(steps=4)" in lines[0] and "; product " in lines[0] for lines in told[1:])


def test_guidance_that_leaves_nothing_out_is_an_error_before_anything_is_timed(standin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "interleave", lambda *args, **options: pytest.fail("it was timed"))
    with pytest.raises(NoEffectError, match=r"did nothing: every call lay in the window .* sigmas went from"):
        bench("cifar10-dit", ["guidance-window(lo=0, hi=None) + dpm(steps=3)"], settings=settings(samples=4))
    with pytest.raises(NoEffectError, match="not guided"):
        bench("cifar10-dit", ["guidance-window + dpm(steps=3)"], job=Job(guidance_scale=1.0), settings=settings(samples=4))


def test_bench_leaves_the_pipeline_as_it_came(standin: Path) -> None:
    pipeline = load("cifar10-dit")
    pipeline.set_progress_bar_config(disable=True)
    job = Job(class_labels=(1, 2), guidance_scale=2.0, steps=4)
    before, image = dict(vars(pipeline)), generate(pipeline, job, range(2))
    bench(pipeline, ["unipc(steps=3)"], job=job, settings=settings(samples=4))
    assert vars(pipeline) == before
    assert torch.equal(generate(pipeline, job, range(2)), image)


def test_a_killed_run_resumes_and_loses_only_the_row_in_flight(standin: Path) -> None:
    output = standin / "out"

    def killed_at_second(record: Record) -> None:
        if record.recipe == "dpm(steps=3)":
            raise KeyboardInterrupt

    recipes = ["dpm(steps=3)", "euler(steps=3)"]
    with pytest.raises(KeyboardInterrupt):
        bench("cifar10-dit", recipes, settings=settings(output=output), watcher=Watcher(row=killed_at_second))
    kept = [json.loads(line)["record"]["recipe"] for line in (output / "rows.jsonl").read_text().splitlines()]
    assert kept == ["stock DDIM, 10 steps", "stock DPM++ 2M, 20 steps", "dpm(steps=3)"]
    said: list[str] = []
    card = bench("cifar10-dit", recipes, settings=settings(output=output, resume=True), watcher=Watcher(say=said.append))
    assert [row.recipe for row in card.records[1:]] == recipes
    assert not any("dpm(steps=3): timing" in line for line in said)
    assert any("euler(steps=3): timing" in line for line in said)
    whole = bench("cifar10-dit", recipes, settings=settings(output=standin / "whole"))
    for ours, theirs in zip(card.rows, whole.rows, strict=True):
        assert ours.quality == theirs.quality
        assert ours.counters == theirs.counters


def test_resuming_takes_n_from_rows_of_the_same_request_only(standin: Path) -> None:
    output = standin / "out"
    bench("cifar10-dit", ["dpm(steps=2)"], settings=settings(output=output, samples=4))
    again = bench("cifar10-dit", ["dpm(steps=2)"], settings=settings(output=output, samples=None, resume=True))
    assert again.baseline.n == 4
    other = bench(
        "cifar10-dit", ["dpm(steps=2)"], job=Job(seed=9), settings=settings(output=output, samples=None, budget=40.0, resume=True)
    )
    assert other.baseline.n != 4
    assert other.baseline.seeds.startswith("9..")


def test_a_new_run_keeps_the_rows_of_the_old_one_aside(standin: Path) -> None:
    for _ in range(2):
        bench("cifar10-dit", ["dpm(steps=2)"], settings=settings(output=standin / "out", samples=4))
    assert len(list((standin / "out").glob("rows*.jsonl"))) == 2


def test_shipped_features_are_used_only_for_the_very_job_and_weights(standin: Path, measured_folder: Path) -> None:
    from dataclasses import asdict, replace

    pipeline = load("cifar10-dit")
    pipeline.set_progress_bar_config(disable=True)
    job = Job(class_labels=tuple(range(10)), guidance_scale=2.0, steps=10)
    net = feature_net()
    stage = Stage(pipeline, [Recipe.parse("dpm(steps=2)")], job)
    kept = {}
    for base in stage.baselines:
        stage.enter(base)
        kept[base.label] = net(generate(pipeline, base.job, range(8)))
    stage.close()
    path = measured_folder / "cifar10-dit" / "baselines.safetensors"
    jobs = {base.label: base.job for base in stage.baselines}
    sha = describe("cifar10-dit").sha256
    try:
        save_features(path, kept, net, {"model": sha, "jobs": {label: asdict(one) for label, one in jobs.items()}})
        shipped = shipped_baselines("cifar10-dit", sha, net, jobs)
        assert shipped is not None
        assert len(shipped) == 8
        assert shipped.problem(kept["stock DDIM, 10 steps"][:4]) is None
        assert shipped.problem(kept["stock DDIM, 10 steps"][:4].flip(0)) is not None
        other = {label: replace(one, guidance_scale=3.0) for label, one in jobs.items()}
        assert shipped_baselines("cifar10-dit", sha, net, other) is None
        assert shipped_baselines("cifar10-dit", "0" * 64, net, jobs) is None
    finally:
        path.unlink(missing_ok=True)


def test_a_preview_counts_calls_and_generates_nothing(standin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.Module, "__call__", lambda *args, **kwargs: pytest.fail("a network was called"))
    lines = preview("cifar10-dit", [Recipe.parse("heun(steps=5)")], job=Job(), placement=Placement())
    assert lines[-1] == "heun(steps=5): 9 calls"


@pytest.mark.parametrize(
    ("recipes", "job", "changes", "message"),
    [
        ([], Job(), {}, "at least one recipe"),
        (["dpm(steps=3)", "dpm(steps=3)"], Job(), {}, "twice"),
        (["dpm(steps=3)"], Job(class_labels=(11,)), {}, "no class 11"),
        (["dpm(steps=3)"], Job(prompts=("a cat",)), {}, "takes no prompt"),
        (["dpm(steps=3)"], Job(height=64), {}, "takes no height"),
        (["dpm(steps=3)"], Job(guidance_scale=-1.0), {}, "guidance_scale must be"),
        (["dpm(steps=2000)"], Job(), {}, "1 .. 1000"),
        (["dpm(steps=3, schedule='flow')"], Job(), {}, "flow"),
        (["dpm(steps=3)"], Job(), {"samples": 10_000_000}, "would take about"),
        (["dpm(steps=3)"], Job(), {"samples": 1_000_000, "budget": 5.0}, "would take about"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    standin: Path, recipes: list[str], job: Job, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        bench("cifar10-dit", recipes, job=job, settings=settings(**changes))


TWO = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from vis_accel import benchmark, measuring
from vis_accel.zoo import bundled
bundled.FOLDER = Path(sys.argv[1])
measuring.ROUNDS, measuring.PROBE = 1, 4
settings = benchmark.Settings(samples=120, batch=40, timing_batch=2, output=Path(sys.argv[2]))
benchmark.bench("cifar10-dit", ["dpm(steps=3)"], settings=settings)
"""


def test_two_processes_measure_what_one_does(standin: Path, measured_folder: Path) -> None:
    (standin / "two.py").write_text(TWO)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    cards = []
    for name, count in (("one", "1"), ("two", "2")):
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
        run = [*launch, "two.py", str(measured_folder), name]
        done = subprocess.run(run, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        cards.append(Card.load(standin / name))
    for one, two in zip(cards[0].rows, cards[1].rows, strict=True):
        assert one.quality.keys() == two.quality.keys()
        for name, quantity in one.quality.items():
            assert two.quality[name].value == pytest.approx(quantity.value, abs=1e-3), name
