"""Takes six edge networks of timm through the whole path on CIFAR-10: train, save, load again, score.

    python vit_models/finetune_edge.py --data DIR --output vit_models/results/finetune-edge.json

DIR holds train/CLASS/*.jpg and test/CLASS/*.jpg. Each network starts from random weights and sees the first 200 training images of each
class for a few epochs, so the accuracies say that the path works and nothing of what the networks can do. Networks that are in the results
file already are skipped; delete the file to measure again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import timm
import torch

from vis_accel.finetuning import FinetuneOptions, finetune
from vis_accel.zoo import load

NETWORKS = {  # name: side of the images, epochs; chosen so that each takes less than three minutes on an idle core
    "mobilevit_xxs": (64, 2),
    "levit_128s": (64, 4),
    "efficientvit_b0": (64, 2),
    "fastvit_t8": (64, 1),
    "edgenext_xx_small": (64, 2),
    "tiny_vit_5m_224": (64, 1),
}
TRAIN, TEST = 200, 100  # images a class
NOTE = "Random weights, few images, few epochs: the path, not the networks. Seconds are wall time of whatever else the machine was doing."


def main() -> None:
    """Measures what is not in the results file yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "finetune-edge.json")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    rows: list[dict[str, Any]] = json.loads(given.output.read_text())["rows"] if given.output.exists() else []
    with tempfile.TemporaryDirectory() as place:
        data = _subset(given.data.resolve(), Path(place, "data"))
        for name, (size, epochs) in NETWORKS.items():
            if name not in {row["model"] for row in rows}:
                rows.append(_measured(name, size, epochs, data, Path(place, name), given.threads))
                given.output.parent.mkdir(parents=True, exist_ok=True)
                facts = {"what": __doc__.splitlines()[0], "note": NOTE, "train_per_class": TRAIN, "test_per_class": TEST, "rows": rows}
                given.output.write_text(json.dumps(facts, indent=1) + "\n")


def _subset(source: Path, target: Path) -> Path:
    """A folder of links to the first images of each class."""
    for part, count in (("train", TRAIN), ("test", TEST)):
        for kind in sorted(path for path in (source / part).iterdir() if path.is_dir()):
            (target / part / kind.name).mkdir(parents=True)
            for image in sorted(kind.iterdir())[:count]:
                os.symlink(image, target / part / kind.name / image.name)
    return target


def _measured(name: str, size: int, epochs: int, data: Path, output: Path, threads: int) -> dict[str, Any]:
    """One row: trained, saved, and read again by timm itself and by this package, which must agree."""
    options = FinetuneOptions(
        model=f"timm/{name}", data=data, output=output, random_weights=True, size=size, epochs=epochs, batch=50, threads=threads,
        precision="no",
    )  # fmt: skip
    done = finetune(options, report=lambda line: print(f"{name}: {line}", flush=True))
    images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = timm.create_model(f"local-dir:{output}", pretrained=True).eval()(images)
        away = float((load(output)(images) - theirs).abs().max())
    kept = ("epochs", "steps", "batch", "loss", "seconds", "images_per_second", "parameters", "seed", "machine", "versions", "commit")
    row = {"model": name, "size": size, "weights": "random", "top1": done.card["top1"]["validation"], "timm_and_ours_differ_by": away}
    return row | {key: done.card[key] for key in kept}


if __name__ == "__main__":
    main()
