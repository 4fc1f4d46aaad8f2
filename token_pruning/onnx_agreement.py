"""Exports cifar10-vit to ONNX under each recipe of fixed counts, and counts on 256 test images how often file and PyTorch agree.

    python token_pruning/onnx_agreement.py            about two minutes; writes results/onnx.json

One recipe is `vis-accel export --recipe ... --data DIR`. The files themselves are not kept.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict
from pathlib import Path

import onnxruntime
import torch

from vis_accel import load
from vis_accel.exporting import export
from vis_accel.files import write_atomic
from vis_accel.zoo.labelled import Preparation, Prepared, bundled_images

RESULTS = Path(__file__).parent / "results" / "onnx.json"
MODEL, IMAGES, BATCH = "cifar10-vit", 256, 64
RECIPES = (
    "tome(r=7)", "tome(r=7, proportional='feature')", "tome(r=7, shape='falling')", "pitome(r=7)", "evit(keep=0.7)", "topk(keep=0.7)",
    "package(keep=0.7)", "cls-only-last", "tuned(weights='tome-7') + tome(r=6)", "tuned(weights='evit-70') + evit(keep=0.7)",
)  # fmt: skip


def main() -> None:
    """Measures every recipe, and writes what was found after each."""
    network, images = load(MODEL), bundled_images(MODEL)
    if images is None:
        raise SystemExit(f"{MODEL} comes without images")
    preparation = Preparation.of(network, 32)
    inputs = preparation.normalised(Prepared(images.first(IMAGES), preparation).pixels(0, IMAGES), next(network.parameters()))
    rows = []
    for recipe in RECIPES:
        for dynamic in (False, True):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "network.onnx"
                found = asdict(export(network, file, recipe=recipe, batch=BATCH, dynamic_batch=dynamic, images=inputs))
            kept = ("recipe", "dynamic_batch", "opset", "bytes", "n", "difference", "typical", "spread", "agreement")
            rows.append({name: found[name] for name in kept})
            print(
                f"{recipe}  {'any batch' if dynamic else f'batch {BATCH}'}  same class for {found['agreement']:.2%} of {found['n']}",
                flush=True,
            )
            facts = {"model": MODEL, "torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "rows": rows}
            write_atomic(RESULTS, json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    main()
