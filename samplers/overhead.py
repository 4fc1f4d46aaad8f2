"""What the stand-in scheduler costs: its step with a free denoiser, beside diffusers' own, as shares of one call of the bundled network.

    python samplers/overhead.py        writes samplers/results/overhead.json

Both schedulers and the network are timed interleaved in this process, on the tensors of the bundled model at batch 16 with guidance
(32 rows).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from vis_accel import load
from vis_accel.eval.speed import interleave
from vis_accel.files import write_atomic
from vis_accel.machine import commit, machine, versions
from vis_accel.pipelines import view
from vis_accel.samplers import create
from vis_accel.samplers.scheduler import SolverScheduler

STEPS, ROWS = 20, 32


@torch.no_grad()
def main(rounds: int) -> None:
    """Times 20 steps of each and one call of the network."""
    from diffusers import DPMSolverMultistepScheduler

    pipeline: Any = load("cifar10-dit")
    stock = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config, timestep_spacing="trailing")
    ours = SolverScheduler(create("dpm"), view(pipeline).noise, pipeline.scheduler, pipeline)
    output = torch.randn(ROWS, 4, 8, 8)
    times, labels = torch.full((ROWS,), 500), torch.arange(ROWS) % 10

    def run(scheduler: Any) -> None:
        scheduler.set_timesteps(STEPS)
        x = output
        for t in scheduler.timesteps:
            x = scheduler.step(output, t, x).prev_sample

    def call_network() -> None:
        pipeline.transformer(output, timestep=times, class_labels=labels)

    found = interleave({"ours": lambda: run(ours), "stock": lambda: run(stock), "call": call_network}, rounds=rounds)
    step, stock_step, call = found.median("ours") / STEPS, found.median("stock") / STEPS, found.median("call")
    result = {
        "steps": STEPS, "rows": ROWS, "rounds": rounds, "step_ms": step * 1e3, "stock_step_ms": stock_step * 1e3, "call_ms": call * 1e3,
        "share_of_a_call": step / call, "stock_share_of_a_call": stock_step / call, "faster_than_stock": str(found.ratio("ours", "stock")),
        "machine": machine(), "versions": versions(), "commit": commit(),
    }  # fmt: skip
    write_atomic(Path(__file__).parent / "results" / "overhead.json", json.dumps(result, indent=1) + "\n")
    print(f"a step costs {step * 1e3:.3f} ms, {step / call:.2%} of a call; diffusers' costs {stock_step * 1e3:.3f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    main(parser.parse_args().rounds)
