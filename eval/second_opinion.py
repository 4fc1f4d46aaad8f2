"""Do two feature networks, of different architectures and trained by different optimisers, rank five samplers alike?

    python eval/second_opinion.py --data DIR

The samplers make the same 2,500 seeds on cifar10-dit at six calls each (Heun: three steps, five calls). Both networks score the images
against the same 45,000 training images; Kendall's tau of the two rankings goes to eval/results/second-opinion.json. See second_net.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from second_net import second_net
from torchmetrics.functional.regression import kendall_rank_corrcoef

from vis_accel.eval.features import FeatureNet, extract
from vis_accel.eval.fid import Statistics, fid_with_interval
from vis_accel.eval.reference import load_reference
from vis_accel.files import write_atomic
from vis_accel.gallery import Gallery
from vis_accel.machine import commit, machine, versions
from vis_accel.zoo.bundled import folder
from vis_accel.zoo.cifar10 import load_split
from vis_accel.zoo.measured import feature_net

SAMPLERS = ("ddim(steps=6)", "ipndm(steps=6)", "dpm(steps=6)", "unipc(steps=6)", "heun(steps=3)")
SAMPLES = 2500


def main(data: Path) -> None:
    """Makes, scores, ranks."""
    gallery = Gallery("cifar10-dit", SAMPLERS)
    images = {str(one.recipe): gallery.images(one, SAMPLES) for one in gallery.stage.candidates}
    train, test = load_split(data, "train"), load_split(data, "test")
    found: dict[str, Any] = {"model": gallery.place.name, "n": SAMPLES, "networks": {}}
    first_net, other = feature_net(), second_net()
    shipped = load_reference(folder(first_net.name) / "reference.safetensors", first_net).statistics  # of the same training images
    for net, real in ((first_net, shipped), (other, Statistics.of(extract(other, train.pixels.split(500))))):
        found["networks"][net.name] = _judge(net, images, real, test)
    first, second = (torch.tensor([row["fid"] for row in judged["samplers"].values()]) for judged in found["networks"].values())
    found["kendall tau"] = float(kendall_rank_corrcoef(first, second))
    found |= {"machine": machine(), "versions": versions(), "commit": commit()}
    write_atomic(Path(__file__).parent / "results" / "second-opinion.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: judged["samplers"] for name, judged in found["networks"].items()}, indent=1), found["kendall tau"])


def _judge(net: FeatureNet, images: dict[str, torch.Tensor], real: Statistics, test: Any) -> dict[str, Any]:
    classifier: Any = net.net
    with torch.no_grad():
        right = sum(
            int((classifier(pixels.float() / 255).argmax(1) == labels).sum())
            for pixels, labels in zip(test.pixels.split(500), test.labels.split(500), strict=True)
        )
    rows = {}
    for name, made in images.items():
        interval = fid_with_interval(extract(net, made.split(500)), real)
        rows[name] = {"fid": interval.value, "interval": str(interval)}
    return {"sha256": net.sha256, "top1": right / len(test), "samplers": rows}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    main(parser.parse_args().data)
