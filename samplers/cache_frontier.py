"""Caches against the honest rival: the same solver, and the best one, with as many calls as the cached run computes in full.

    python samplers/cache_frontier.py measure --model cifar10-dit        paired distance and speed of every row, 64 seeds
    python samplers/cache_frontier.py table --model cifar10-dit          what was measured, as Markdown
    python samplers/cache_frontier.py search --model cifar10-unet        which calls to compute in full, for one number of calls
    python samplers/cache_frontier.py calibrate --model cifar10-dit --full 14     the threshold of firstblock for so many full calls

A row is the root mean square difference of the samples the network ends with (latents or pixels, of about unit size) from a converged
trajectory on equal seeds, its calls, how many of them were full, its multiply-accumulates, and its images a second, all rows interleaved. A
cache row is marked "beaten" when a row without a cache is nearer and at least as fast. Rows and machine go to
samplers/results/cache-MODEL.json.

`search` begins at every third call and moves one full call at a time while the end of whole runs comes nearer to the uncached end. It
prints the recipe, and its error on fresh seeds beside that of the even plan.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel import accelerate, load
from vis_accel.caching.schedule import exchange
from vis_accel.caching.thresholds import first_changes, threshold_for
from vis_accel.contenders import Stage
from vis_accel.eval.speed import interleave, median_interval
from vis_accel.files import write_atomic
from vis_accel.generation import Job, generate
from vis_accel.machine import commit, machine, versions
from vis_accel.recipe import Recipe
from vis_accel.rows import count
from vis_accel.samplers.heun import Heun
from vis_accel.trajectories import apart, record
from vis_accel.zoo import describe

RESULTS = Path(__file__).parent / "results"
IMAGES, TIMED, ROUNDS = 64, 16, 6
STEPS = (10, 12, 14, 16, 20, 25, 30, 50)
SOLVERS = ("ddim(steps={})", "dpm(steps={})")
CACHES = {
    "cifar10-dit": (
        "taylor(interval=2, order=0)", "taylor(interval=2)", "taylor(order=0)", "taylor(order=1)", "taylor", "taylor(order=3)",
        "taylor(time='log-sigma')", "firstblock(threshold=0.05)", "firstblock", "firstblock(threshold=0.2)",
    ),
    "cifar10-unet": (
        "deepcache(interval=2)", "deepcache", "deepcache(branch=3)", "deepcache(branch=3, interval=2)", "deepcache(branch=3, centre=0.7)",
    ),
}  # fmt: skip
CACHED_STEPS = (20, 30, 50)


def ends(pipeline: Any, job: Job, indices: range) -> Tensor:
    """The samples the network ends with, whatever is on the pipeline: latents before the decoder, pixels in -1 .. 1."""
    caught: list[Tensor] = []
    if not hasattr(pipeline, "vae"):
        return generate(pipeline, job, indices).float() / 127.5 - 1
    hook = pipeline.vae.post_quant_conv.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0].clone()))
    try:
        generate(pipeline, job, indices)
    finally:
        hook.remove()
    return torch.cat(caught) * pipeline.vae.config.scaling_factor


def measure(model: str, images: int, steps: tuple[int, ...], cached: tuple[int, ...]) -> None:
    """All rows: error and work one after another, then the speed of all of them interleaved."""
    pipeline: Any = load(model)
    pipeline.set_progress_bar_config(disable=True)
    job = Job(**describe(model).job)
    truth = record(pipeline, Heun(steps=200, schedule="karras"), job, range(images), images).points[-1]
    if not hasattr(pipeline, "vae"):
        truth = truth.clamp(-1, 1)  # as the pipeline's own images are
    plain = [solver.format(n) for solver in SOLVERS for n in steps]
    with_cache = [f"{cache} + {solver.format(n)}" for cache in CACHES[model] for solver in SOLVERS for n in cached]
    stage = Stage(pipeline, [Recipe.parse(text) for text in (*plain, *with_cache)], job)
    rows = [_row(stage, contender, truth, images) for contender in stage.candidates]
    runs = {one.label: lambda: generate(pipeline, job, range(TIMED)) for one in stage.candidates}
    people = {one.label: one for one in stage.candidates}
    timings = interleave(runs, rounds=ROUNDS, warmup=1, prepare=lambda label: stage.enter(people[label]))
    for row in rows:
        rates = median_interval([TIMED / seconds for seconds in timings.values[row["recipe"]]])
        row |= {"images_per_second": rates.value, "interval": [rates.low, rates.high]}
    for row in rows:
        row["beaten_by"] = beaten_by(row, rows)
    stage.close()
    found = {"model": model, "sha256": describe(model).sha256, "n": images, "timing_batch": TIMED, "teacher": "heun(steps=200, karras)"}
    found |= {"rows": rows, "machine": machine(), "versions": versions(), "commit": commit()}
    write_atomic(RESULTS / f"cache-{model}.json", json.dumps(found, indent=1) + "\n")
    print(table(found))


def _row(stage: Stage, contender: Any, truth: Tensor, images: int) -> dict[str, Any]:
    counted = count(stage, contender)
    before = contender.handle.report()
    end = ends(stage.pipeline, contender.job, range(images))
    after = contender.handle.report()
    cached = "calls in full" in after
    full = after["calls in full"] - before["calls in full"] if cached else counted["calls"]
    row = {"recipe": contender.label, "cached": cached, "calls": counted["calls"], "full": full, "GMACs": counted["GMACs"]}
    row["error"] = round(apart(end, truth), 5)
    print(row, flush=True)
    return row


def beaten_by(row: dict[str, Any], rows: list[dict[str, Any]]) -> str | None:
    """The nearest row without a cache that is at least as fast and nearer than this cache row; None if there is none."""
    if not row["cached"]:
        return None
    better = [one for one in rows if not one["cached"] and one["error"] <= row["error"] and _speed(one) >= _speed(row)]
    return min(better, key=lambda one: float(one["error"]))["recipe"] if better else None


def _speed(row: dict[str, Any]) -> float:
    return float(row["images_per_second"])


def table(found: dict[str, Any]) -> str:
    """The rows as Markdown, fastest first."""
    lines = [
        f"**`{found['model']}`**: root mean square difference from {found['teacher']} on {found['n']} seeds.", "",
        "| recipe | calls | in full | GMACs an image | images/s | difference | beaten by a shorter schedule |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in sorted(found["rows"], key=_speed, reverse=True):
        speed = f"{_speed(row):.3g} [{row['interval'][0]:.3g}, {row['interval'][1]:.3g}]"
        marked = (f"beaten by `{row['beaten_by']}`" if row["beaten_by"] else "no") if row["cached"] else "-"
        lines.append(f"| `{row['recipe']}` | {row['calls']} | {row['full']} | {row['GMACs']} | {speed} | {row['error']:.3g} | {marked} |")
    return "\n".join(lines)


def search(model: str, solver: str, cache: str, images: int) -> None:
    """Prints the plan with the smallest error that single moves find from the even one."""
    pipeline: Any = load(model)
    pipeline.set_progress_bar_config(disable=True)
    job = Job(**describe(model).job)

    def end(recipe: str, indices: range) -> Tensor:
        with accelerate(pipeline, recipe):
            return ends(pipeline, job, indices)

    def text(full: tuple[int, ...]) -> str:
        return f"{cache[:-1]}, full={full!r})" if cache.endswith(")") else f"{cache}(full={full!r})"

    seen, fresh = range(images), range(images, 3 * images)
    wanted, fresh_wanted = end(solver, seen), end(solver, fresh)
    calls = Recipe.parse(solver).methods[0].options().get("steps")
    if not isinstance(calls, int):
        raise SystemExit(f"{solver} must say its number of steps")

    def error(full: tuple[int, ...]) -> float:
        found = apart(end(f"{text(full)} + {solver}", seen), wanted)
        print(f"{full}: {found:.5f}", flush=True)
        return found

    even = tuple(range(3, calls - 2, 3))
    best, least = exchange(calls, even, error)
    told = {text(full): apart(end(f"{text(full)} + {solver}", fresh), fresh_wanted) for full in (even, best)}
    print(f"on the seeds of the search: {least:.5f}; on fresh ones, the even plan first: {told}")


def calibrate(model: str, solver: str, full: int, images: int, most: int = 3) -> None:
    """Prints the threshold of firstblock for `full` full calls, and what a run with it does."""
    pipeline: Any = load(model)
    pipeline.set_progress_bar_config(disable=True)
    job = Job(**describe(model).job)
    with accelerate(pipeline, solver):
        changes = first_changes(pipeline.transformer, lambda: generate(pipeline, job, range(images)))
    recipe = f"firstblock(threshold={threshold_for(changes, full, most)}, most={most}) + {solver}"
    with accelerate(pipeline, recipe) as handle:
        generate(pipeline, job, range(images))
        print(recipe, handle.report())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("measure", "table", "search", "calibrate"))
    parser.add_argument("--model", required=True, choices=sorted(CACHES))
    parser.add_argument("--images", type=int, default=None, help="seeds a row: 64, or 16 in a search")
    parser.add_argument("--steps", type=int, nargs="+", default=STEPS, help="of the rows without a cache")
    parser.add_argument("--cached-steps", type=int, nargs="+", default=CACHED_STEPS, help="of the rows with one")
    parser.add_argument("--solver", default="ddim(steps=30)", help="for search and calibrate: one call a step")
    parser.add_argument("--cache", default=None, help="for search: without interval or full calls")
    parser.add_argument("--full", type=int, default=14, help="for calibrate: the number of full calls")
    given = parser.parse_args()
    with torch.inference_mode():
        if given.what == "measure":
            measure(given.model, given.images or IMAGES, tuple(given.steps), tuple(given.cached_steps))
        elif given.what == "table":
            print(table(json.loads((RESULTS / f"cache-{given.model}.json").read_text())))
        elif given.what == "calibrate":
            calibrate(given.model, given.solver, given.full, given.images or 16)
        else:
            default = "deepcache(branch=3)" if given.model == "cifar10-unet" else "taylor"
            search(given.model, given.solver, given.cache or default, given.images or 16)
