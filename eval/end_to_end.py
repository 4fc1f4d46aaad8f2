"""Whole runs of the bundled class-conditional pipeline, everything on: images a second, quality, and where the time goes that is left.

    python eval/end_to_end.py                   n = 5,000; writes eval/results/end-to-end
    python eval/end_to_end.py --samples 1300    a try-out, to runs/end-to-end

The rows are those of `vis-accel bench`: interleaved with the stock pipeline (DDIM-50, float32) and held against it by the two-sided rule,
decode included. Then each recipe's run is taken apart: seconds in the denoiser, in the decoder, and in neither (the sampler, the
pipeline's own Python, copies).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn

from vis_accel import accelerate, load
from vis_accel.benchmark import Settings, Watcher, bench
from vis_accel.files import write_atomic
from vis_accel.generation import Job, generate
from vis_accel.machine import commit, machine, versions
from vis_accel.pipelines import view
from vis_accel.zoo import describe
from vis_accel.zoo.opened import Placement

MODEL = "cifar10-dit"
FAST = "bf16 + int8 + compile(backend='openvino')"
RECIPES = (f"dpm(steps=10) + {FAST}", f"distilled(steps=4) + {FAST}", f"distilled(steps=1) + {FAST}")
BATCH, RUNS = 64, 7
BUDGET = 3600.0  # seconds: enough for eight rounds of timing a row
FOLDER = Path(__file__).parent / "results" / "end-to-end"


def parts(recipe: str) -> dict[str, float]:
    """Median seconds of one run of BATCH images, and of it in the denoiser and the decoder."""
    pipeline: Any = load(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    job = Job(**describe(MODEL).job)
    spent = {"denoiser": list[float](), "decoder": list[float](), "whole": list[float]()}
    with accelerate(pipeline, recipe, calibration=job) if recipe else _nothing():
        for name, network in (("denoiser", view(pipeline).denoiser), ("decoder", pipeline.vae.decoder)):
            _watch(network, spent[name])
        for _ in range(RUNS):
            for calls in spent.values():
                calls.append(0.0)
            started = time.perf_counter()
            generate(pipeline, job, range(BATCH))
            spent["whole"][-1] = time.perf_counter() - started
    return {name: median(runs[1:]) for name, runs in spent.items()}  # the first run compiles


def _watch(network: nn.Module, runs: list[float]) -> None:
    """Adds the time of every call to the last of `runs`. The network is this function's own: it is not put back."""
    forward: Callable[..., Any] = network.forward

    def timed(*args: Any, **options: Any) -> Any:
        started = time.perf_counter()
        found = forward(*args, **options)
        runs[-1] += time.perf_counter() - started
        return found

    network.forward = timed


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()


def main(samples: int, folder: Path) -> None:
    """Rows, then parts."""
    settings = Settings(samples=samples, budget=BUDGET, batch=BATCH, output=folder, resume=True, placement=Placement())
    watcher = Watcher(say=print, row=lambda row: print(row.recipe, row.verdict or "", None if row.speed is None else row.speed.ratios))
    bench(MODEL, list(RECIPES), settings=settings, watcher=watcher)
    table = {}
    for recipe in ("", *RECIPES):
        table[recipe or "stock"] = found = parts(recipe)
        rest = found["whole"] - found["denoiser"] - found["decoder"]
        print(f"{recipe or 'stock'}: {found['whole']:.3f} s; the rest {rest:.3f} s", found, flush=True)
    facts = {"batch": BATCH, "runs": RUNS - 1, "seconds": table, "machine": machine(), "versions": versions(), "commit": commit()}
    write_atomic(folder / "parts.json", json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    given = parser.parse_args()
    with torch.no_grad():
        main(given.samples, FOLDER if given.samples >= 5000 else Path("runs/end-to-end"))
