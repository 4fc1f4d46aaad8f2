"""What precision costs in quality: images of the bundled pipelines in float32 and in fewer bits, on equal seeds, by the two-sided rule.

    python eval/precision_quality.py --model cifar10-dit        or cifar10-unet; writes eval/results/precision-quality.json, row by row
    python eval/precision_quality.py --model cifar10-unet --row "q-diffusion(weights=4)"        one row, the others kept
    python eval/precision_quality.py --model cifar10-dit --samples 1300        a try-out: no claim below 5,000

The reference row is the same sampler in float32: what is compared is the precision, not the sampler. Features of finished rows are kept
under runs/, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

import vis_accel
from vis_accel import accelerate
from vis_accel.eval.yardstick import paired_quality
from vis_accel.files import write_atomic
from vis_accel.generation import Job, generate
from vis_accel.machine import commit, machine, versions
from vis_accel.zoo.measured import yardstick_for
from vis_accel.zoo.opened import Placement, open_pipeline

RESULTS = Path(__file__).parent / "results" / "precision-quality.json"
STORE = Path("runs/precision-quality")
SAMPLER = "dpm(steps=10)"
PRECISIONS = {
    "cifar10-dit": ("bf16 + compile(backend='openvino')", "int8", "bf16 + int8 + compile(backend='openvino')", "int8(vae=False)"),
    "cifar10-unet": (
        "bf16 + channels-last + int8 + compile", "int8", "q-diffusion(weights=4)", "q-diffusion(weights=4, split=False)",
        "q-diffusion(weights=4, rounding='nearest', ranges='static', split=False)",
    ),
}  # fmt: skip
BATCH, KEPT = 64, 64  # images a call; first images, for PSNR


def features(opened: Any, net: Any, recipe: str, n: int) -> tuple[Tensor, Tensor, list[str]]:
    """Features of n images and the first images, from the store if they are there; and what the methods report."""
    facts = [
        opened.sha256,
        recipe,
        str(opened.job),
        n,
        "" if recipe == SAMPLER else _methods_sha256(),
        net.sha256 if hasattr(net, "sha256") else net.name,
    ]
    place = STORE / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]}.safetensors"
    if place.is_file():
        stored = load_file(place)
        return stored["features"], stored["images"], json.loads(bytes(stored["report"].tolist()))
    found, first = list[Tensor](), list[Tensor]()
    with accelerate(opened.pipeline, recipe, calibration=opened.job) if recipe else nullcontext() as handle:
        for start in range(0, n, BATCH):
            images = generate(opened.pipeline, opened.job, range(start, start + BATCH))[: n - start]
            found.append(net(images))
            first.append(images[: max(0, KEPT - start)])
            print(f"\r{recipe}: {min(start + BATCH, n)} of {n}", end="", flush=True)
        report = [f"{name}: {value}" for name, value in handle.report().items()]
    print()
    kept = {"features": torch.cat(found), "images": torch.cat(first), "report": torch.tensor(list(json.dumps(report).encode()))}
    STORE.mkdir(parents=True, exist_ok=True)
    write_atomic(place, save(kept))
    return kept["features"], kept["images"], report


def _methods_sha256() -> str:
    """Of the files that say what a precision does: features of rows made by others are not used."""
    package = Path(vis_accel.__file__).parent
    files = sorted([*(package / "precision").glob("*.py"), *(package / "runtime").glob("*.py")])
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def main(model: str, n: int, only: list[str]) -> None:
    """All rows of one model, or some."""
    opened = open_pipeline(model, Job(), Placement())
    yardstick = yardstick_for(opened.name, None)
    if yardstick is None:
        raise SystemExit(f"{model} has no reference images")
    labels = opened.job.labels(n) if opened.job.class_labels else None
    base, pictures, _ = features(opened, yardstick.net, SAMPLER, n)
    whole = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    before = whole.get(model, {})
    rows: dict[str, Any] = before.get("rows", {}) if only and before.get("n") == n else {}
    rows[SAMPLER] = {"quality": _plain(yardstick.quality(base, labels))}
    for precision in only or PRECISIONS[model]:
        recipe = f"{SAMPLER} + {precision}"
        found, first, report = features(opened, yardstick.net, recipe, n)
        difference, verdict = yardstick.compare(found, base)
        quality = yardstick.quality(found, labels) | difference | paired_quality(pictures, first)
        rows[recipe] = {"quality": _plain(quality), "verdict": verdict, "report": report}
        print(f"{recipe}: {verdict}", flush=True)
        whole[model] = {
            "n": n, "reference": yardstick.reference.name, "net_sha256": yardstick.reference.net_sha256, "floor": yardstick.floor(n),
            "job": {"guidance_scale": opened.job.guidance_scale, "seed": opened.job.seed}, "rows": rows, "machine": machine(),
            "versions": versions(), "commit": commit(),
        }  # fmt: skip
        write_atomic(RESULTS, json.dumps(whole, indent=1) + "\n")


def _plain(quality: dict[str, Any]) -> dict[str, Any]:
    return {name: {"value": found.value, "low": found.low, "high": found.high} for name, found in quality.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("cifar10-dit", "cifar10-unet"), required=True)
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--row", action="append", default=[], help="a recipe without its sampler; may be given several times")
    given = parser.parse_args()
    main(given.model, given.samples, given.row)
