"""A student of exactly N steps beside the solvers at twice its calls: quality on equal seeds, and a call-for-call look at its speed.

    python eval/student_quality.py            cifar10-unet; writes eval/results/student-quality.json, row by row
    python eval/student_quality.py --samples 1300        a try-out, to runs/: no claim below 5,000

Each rival is a reference row: the student's difference to it is paired by seed, and judged by the two-sided rule. Features of finished rows
are kept under runs/, so that a run that was stopped goes on. Speed: whole runs of 32 images, interleaved, ratio of each round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from precision_quality import _plain, features

from vis_accel import accelerate
from vis_accel.files import write_atomic
from vis_accel.generation import Job, generate
from vis_accel.machine import commit, machine, versions
from vis_accel.zoo.measured import yardstick_for
from vis_accel.zoo.opened import Placement, open_pipeline

RESULTS, TRIAL = Path(__file__).parent / "results" / "student-quality.json", Path("runs/student-quality.json")
MODEL, STUDENT = "cifar10-unet", "distilled(steps=4)"
RIVALS = (
    "dpm(steps=8)",
    "unipc(steps=8)",
    "ipndm(steps=8, schedule='karras', order=3)",
    "dpm(steps=6, schedule='searched')",
)
ROUNDS, TIMED = 7, 32


def main(n: int) -> None:
    """The student and all rivals."""
    opened = open_pipeline(MODEL, Job(), Placement())
    yardstick = yardstick_for(opened.name, None)
    if yardstick is None:
        raise SystemExit(f"{MODEL} has no reference images")
    place = RESULTS if n >= 5000 else TRIAL
    ours, _, report = features(opened, yardstick.net, STUDENT, n)
    rows: dict[str, Any] = {STUDENT: {"quality": _plain(yardstick.quality(ours, None)), "report": report}}
    for rival in RIVALS:
        theirs, _, _ = features(opened, yardstick.net, rival, n)
        difference, verdict = yardstick.compare(ours, theirs)
        rows[rival] = {"quality": _plain(yardstick.quality(theirs, None)), "student": _plain(difference), "verdict": verdict}
        print(f"{STUDENT} to {rival}: {verdict}", flush=True)
        facts = {
            "model": MODEL, "n": n, "reference": yardstick.reference.name, "net_sha256": yardstick.reference.net_sha256,
            "floor": yardstick.floor(n), "seed": opened.job.seed, "rows": rows, "machine": machine(), "versions": versions(),
            "commit": commit(),
        }  # fmt: skip
        write_atomic(place, json.dumps(facts, indent=1) + "\n")
    facts["speed"] = speeds(opened)
    write_atomic(place, json.dumps(facts, indent=1) + "\n")


def speeds(opened: Any) -> dict[str, dict[str, float]]:
    """How many times faster than each rival the student is: median, least and largest of the rounds."""
    seconds: dict[str, list[float]] = {recipe: [] for recipe in (STUDENT, *RIVALS)}
    for _ in range(ROUNDS + 1):
        for recipe, found in seconds.items():
            with accelerate(opened.pipeline, recipe):
                start = time.perf_counter()
                generate(opened.pipeline, opened.job, range(TIMED))
                found.append(time.perf_counter() - start)
    ratios = {rival: [b / a for a, b in list(zip(seconds[STUDENT], seconds[rival], strict=True))[1:]] for rival in RIVALS}  # 0: warm-up
    return {rival: {"value": statistics.median(found), "low": min(found), "high": max(found)} for rival, found in ratios.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=5000)
    main(parser.parse_args().samples)
