"""Every solver on every schedule it takes, at equal numbers of calls: how far it ends from a converged trajectory, and the FID of the best.

    python samplers/compare.py screen --model cifar10-dit      64 images a row, hours; goes on where it was
    python samplers/compare.py fid --model cifar10-dit         5,000 images for the best two of each number of calls

`screen` runs a teacher (Heun, 200 steps on a Karras grid) once, and then each solver on the same seeds. A row is the root mean square
difference of the samples the network ends with: latents or pixels, of about unit size. Solvers that take several calls a step get as many
steps as the calls allow. Stochastic solvers go nowhere in particular, so only their FID can be compared.

`fid` takes the nearest rows of the screening and compares each, on equal seeds, with DDIM at 100 steps. Results go to
samplers/results/compare-MODEL.json; `python eval/write_figures.py` makes the tables of samplers/README.md and docs/which-sampler.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.eval.features import extract
from vis_accel.eval.fid import fid_with_interval
from vis_accel.files import write_atomic
from vis_accel.gallery import CACHE, Gallery
from vis_accel.generation import Job
from vis_accel.machine import commit, machine, versions
from vis_accel.pipelines import view
from vis_accel.recipe import Recipe
from vis_accel.samplers import NoiseModel, Solver, plan
from vis_accel.samplers.heun import Heun
from vis_accel.trajectories import apart, record
from vis_accel.zoo import describe, load
from vis_accel.zoo.measured import yardstick_for

RESULTS = Path(__file__).parent / "results"
CALLS = (4, 5, 6, 8, 10, 15, 20, 50)
SOLVERS = (
    "ddim", "heun", "dpm(order=2)", "dpm(order=3)", "dpm(order=2, prediction='noise')", "unipc(order=2)", "unipc(order=3)",
    "ipndm(order=2)", "ipndm(order=3)", "ipndm(order=4)", "adams(order=2)", "adams(order=3)", "deis(order=2)", "deis(order=3)",
    "singlestep(order=2)", "singlestep(order=3)", "plms", "pndm", "dpm(order=3, third='published')",
    "unipc(afs=True)", "dpm(order=2, afs=True)", "ipndm(afs=True, order=3)", "deis(afs=True, order=3)",
    "deis(order=2, variable='t')", "deis(order=3, variable='t')", "singlestep(order=3, fast=True)",
)  # fmt: skip
SCHEDULES = ("trailing", "leading", "linspace", "quadratic", "beta", "time-power", "logsnr", "karras")
IMAGES = 64
SAMPLES = 5000
REFERENCE = "ddim(steps=100)"


def screen(model: str, calls: tuple[int, ...], solvers: tuple[str, ...], chosen: tuple[str, ...]) -> None:
    """Fills in the rows that are missing."""
    path, found = RESULTS / f"compare-{model}.json", _read(model)
    pipeline: Any = load(model)
    pipeline.set_progress_bar_config(disable=True)
    noise, job = view(pipeline).noise, Job(**describe(model).job)
    target = _teacher(model, pipeline, job)
    done = {(row["solver"], row["schedule"], row["calls"]) for row in found["rows"]}
    for count in calls:
        for text in solvers:
            for schedule in chosen:
                solver = solver_of(text, schedule, count, noise)
                if (text, schedule, count) in done or solver is None:
                    continue
                error = apart(record(pipeline, solver, job, range(IMAGES), IMAGES).points[-1], target)
                used = len(plan(solver, solver.knots(None, noise)))
                found["rows"].append({"solver": text, "schedule": schedule, "calls": count, "used": used, "error": round(error, 5)})
                print(f"{model}: {solver} {used} calls {error:.4f}", flush=True)
            write_atomic(path, json.dumps(found | _made(), indent=1) + "\n")


def solver_of(text: str, schedule: str, calls: int, noise: NoiseModel) -> Solver | None:
    """The solver with the most steps that make at most `calls` calls; None if even one step makes more, or the schedule does not fit."""
    method: Any = Recipe.parse(text).methods[0]
    if getattr(method, "fast", False) and schedule != "logsnr":  # its points are equal in log sigma, whatever knots it is given
        return None
    best = None
    for steps in range(1, calls + 2):  # one more than the calls, where the first takes none
        try:
            solver: Solver = replace(method, schedule=schedule, steps=steps)
            if len(plan(solver, solver.knots(None, noise))) <= calls:
                best = solver
        except NotApplicableError:
            return None
        except UsageError:  # too few steps for this solver
            continue
    return best


def _teacher(model: str, pipeline: Any, job: Job) -> Tensor:
    """The converged samples, made once and kept beside the images."""
    from safetensors.torch import load_file, save

    path = CACHE / f"{model}-{describe(model).sha256[:12]}" / f"converged-{IMAGES}.safetensors"
    if not path.exists():
        end = record(pipeline, Heun(steps=200, schedule="karras"), job, range(IMAGES), IMAGES).points[-1]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save({"end": end.contiguous()}))
    return load_file(path)["end"]


def fid(model: str, calls: tuple[int, ...], recipes: tuple[str, ...], front: int) -> None:
    """Scores the nearest rows and `recipes`, each against the first recipe on equal seeds."""
    path, found = RESULTS / f"compare-{model}.json", _read(model)
    scale = yardstick_for(model, None)
    if scale is None:
        raise SystemExit(f"{model} has no yardstick")
    noise = view(load(model)).noise
    wanted = [*recipes, *(text for count in calls for text in nearest(found, count, noise)[:front])]
    done = {row["recipe"] for row in found["fid"]}
    against: Tensor | None = None
    for text in dict.fromkeys(wanted):
        if text in done and against is not None:
            continue
        gallery = Gallery(model, (text,))
        contender = gallery.stage.candidates[0]
        features = extract(scale.net, gallery.images(contender, SAMPLES).split(500))
        solver: Any = contender.recipe.methods[0]
        interval = fid_with_interval(features, scale.reference.statistics)
        used = len(plan(solver, solver.knots(contender.job.steps, noise)))
        row = {"recipe": text, "calls": used, "n": SAMPLES, "fid": interval.value, "interval": str(interval), "floor": scale.floor(SAMPLES)}
        if against is None:
            against = features
        else:
            differences, verdict = scale.compare(features, against)
            (apart_by,) = differences.values()
            span = f"{apart_by.value:+.3f} [{apart_by.low:+.3f}, {apart_by.high:+.3f}]"
            row |= {"against": wanted[0], "difference": span, "verdict": verdict.partition(":")[0], "reason": verdict}
        found["fid"] = [*(other for other in found["fid"] if other["recipe"] != text), row]
        print(row, flush=True)
        write_atomic(path, json.dumps(found | _made() | {"measure": scale.fid}, indent=1) + "\n")


def nearest(found: dict[str, Any], calls: int, noise: NoiseModel) -> list[str]:
    """Recipes of the nearest row of each family of solvers: the orders of one make nearly the same images."""
    best: dict[str, str] = {}
    for row in sorted((row for row in found["rows"] if row["calls"] == calls), key=lambda row: float(row["error"])):
        best.setdefault(row["solver"].partition("(")[0], str(solver_of(row["solver"], row["schedule"], calls, noise)))
    return list(best.values())


def _read(model: str) -> dict[str, Any]:
    path, sha256 = RESULTS / f"compare-{model}.json", describe(model).sha256
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["sha256"] == sha256:
            return found
        print(f"{path} is of other weights: beginning anew", flush=True)
    job = asdict(Job(**describe(model).job))
    return {
        "model": model,
        "sha256": sha256,
        "job": job,
        "teacher": "heun(steps=200, schedule='karras')",
        "n": IMAGES,
        "rows": [],
        "fid": [],
    }


def _made() -> dict[str, Any]:
    return {"machine": machine(), "versions": versions(), "commit": commit()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("screen", "fid"))
    parser.add_argument("--model", required=True)
    parser.add_argument("--calls", type=int, nargs="+", default=CALLS)
    parser.add_argument("--solver", nargs="+", default=SOLVERS, help="for screen: which")
    parser.add_argument("--schedule", nargs="+", default=SCHEDULES, help="for screen: which")
    parser.add_argument(
        "--recipe", nargs="+", default=(REFERENCE,), help="for fid: what is scored beside the nearest rows; the first is the reference"
    )
    parser.add_argument("--front", type=int, default=2, help="for fid: how many solvers of each number of calls")
    given = parser.parse_args()
    with torch.inference_mode():
        if given.what == "screen":
            screen(given.model, tuple(given.calls), tuple(given.solver), tuple(given.schedule))
        else:
            fid(given.model, tuple(given.calls), tuple(given.recipe), given.front)
