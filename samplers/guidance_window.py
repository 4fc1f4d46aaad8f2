"""Searches the noise levels at which a model needs its guidance, and prints every window that was tried.

    python samplers/guidance_window.py --model cifar10-dit --sampler "dpm(steps=10)" --images 2000

Results go to samplers/results/guidance-window-MODEL.json. How it searches is said in vis_accel/guidance_search.py; the recipe it prints is
judged by `vis-accel bench --recipe "..." --samples 5000`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from vis_accel.guidance_search import TriedWindow, search_window

RESULTS = Path(__file__).parent / "results"


def line(tried: TriedWindow) -> str:
    """One window as a row."""
    names = ("class agreement", "precision", "recall")
    others = ", ".join(f"{name} {value:.3f}" for name in names if (value := tried.scores.get(name)) is not None)
    hi = "any" if tried.hi is None else f"{tried.hi:g}"
    low, high = tried.scores["KID, low"], tried.scores["KID, high"]
    return f"({tried.lo:g}, {hi}]: {tried.nfe:g} rows an image, KID {tried.kid:.4f} [{low:.4f}, {high:.4f}], {others}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10-dit")
    parser.add_argument("--sampler", default="dpm(steps=10)")
    parser.add_argument("--images", type=int, default=1000, help="of every run")
    parser.add_argument("--reference", help="real images: a folder, or a file of `vis-accel reference`")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--output", type=Path, help="without it samplers/results/guidance-window-MODEL.json")
    given = parser.parse_args()
    with torch.inference_mode():
        found = search_window(
            given.model, given.sampler, images=given.images, reference=given.reference, threads=given.threads,
            progress=lambda text: print(text, flush=True),
        )  # fmt: skip
    found.save(given.output or RESULTS / f"guidance-window-{Path(given.model).name}.json")
    print(*map(line, found.tried), "fresh seeds:", *map(line, found.fresh), found.verdict(), found.recipe, sep="\n")
