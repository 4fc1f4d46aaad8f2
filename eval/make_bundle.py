"""Turns training runs into bundled models: installs the weights, measures what ships with them, writes cards and hashes.

    python eval/make_bundle.py features --run runs/cifar10-features/refine --data DIR
    python eval/make_bundle.py dit --run runs/cifar10-dit [--samples 5000]

`features` makes the reference (statistics of the training images) and the features of the test images, whose FID is the floor. `dit`
looks for the guidance of the lowest FID that keeps recall, decides between leading and trailing spacing for the stock DDIM, and stores
the features of the baselines' images at that setting. All it found is in eval/results/bundle-*.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vis_accel.contenders import Stage
from vis_accel.eval.features import extract
from vis_accel.eval.fid import Statistics, fid_with_interval, real_floor
from vis_accel.eval.reference import make_reference, save_reference
from vis_accel.files import write_atomic
from vis_accel.generation import Job, generate
from vis_accel.recipe import Recipe
from vis_accel.zoo import describe, load
from vis_accel.zoo.bundled import CARD, FOLDER, seal
from vis_accel.zoo.cifar10 import CLASSES, SPLITS, load_split
from vis_accel.zoo.measured import feature_net, save_features, yardstick_for

RESULTS = Path(__file__).parent / "results"
DATA = (
    "CIFAR-10 (Krizhevsky 2009), a 32 x 32 JPEG copy of quality about 75 with 4:2:0 chroma; "
    "45,000 training images, 5,000 set aside as calibration"
)


def features(run: Path, data: Path) -> None:
    """Installs the feature net and what it sees of the real images."""
    stages = [json.loads(path.read_text()) for path in (run.parent / "history.json", run / "history.json") if path.exists()]
    top1 = stages[-1]["history"][-1]["top1"]
    place = _fresh(FOLDER / "cifar10-features")
    shutil.copy(run / "model.safetensors", place / "model.safetensors")
    card: dict[str, Any] = {
        "name": "cifar10-features", "kind": "features", "summary": "convolutional classifier, 64 features before its head",
        "license": "Apache-2.0", "trained_on": DATA, "classes": list(CLASSES), "scores": {"top1 in training precision": top1},
    }  # fmt: skip
    _write(place, card)
    net = feature_net()
    test = load_split(data, "test")
    predicted = torch.cat([net.net(part.float() / 255).argmax(1) for part in test.pixels.split(500)])
    card["scores"] = {"top1": float((predicted == test.labels).float().mean())}
    train = load_split(data, "train")
    real = extract(net, train.pixels.split(500))
    save_reference(place / "reference.safetensors", make_reference(real, net, images="cifar10-jpeg", split="train"))
    held_out = extract(net, test.pixels.split(500))
    facts = {"images": "cifar10-jpeg", "split": "test", "sha256": test.sha256}
    save_features(place / "held_out.safetensors", {"test": held_out}, net, facts)
    _write(place, card)
    floor = {n: real_floor(held_out, Statistics.of(real), n) for n in (1280, 2500, 5000, 10000)}
    hashes = {split: load_split(data, split).sha256 for split in SPLITS}
    _result("bundle-features", {"top1": card["scores"]["top1"], "floor": floor, "sha256": hashes, "training": stages})


def dit(run: Path, samples: int, sweep: int) -> None:
    """Installs the pipeline, finds its setting and stores its baselines."""
    history = json.loads((run / "history.json").read_text())
    place = _fresh(FOLDER / "cifar10-dit")
    shutil.copytree(run / "pipeline", place, dirs_exist_ok=True)
    card: dict[str, Any] = {
        "name": "cifar10-dit", "kind": "pipeline", "license": "Apache-2.0", "trained_on": DATA, "classes": list(CLASSES),
        "summary": "class-conditional latent diffusion at 32 x 32: a stock DiTPipeline, 16 tokens", "sampler": "ddim(steps=50)",
        "job": {"seed": 0, "class_labels": list(range(10)), "guidance_scale": 2.0, "steps": 50},
    }  # fmt: skip
    _write(place, card)
    found: dict[str, Any] = {"training": history, "guidance": [], "spacing": []}
    scale = yardstick_for("cifar10-dit", None)
    if scale is None:
        raise SystemExit("run the features step first")
    for guidance in (1.5, 2.0, 3.0, 4.0, 5.0, 6.5):
        job = Job(class_labels=tuple(range(10)), guidance_scale=guidance, steps=12)
        found["guidance"].append({"guidance_scale": guidance} | _scores(scale, job, sweep, "dpm(steps=12)"))
        print(found["guidance"][-1], flush=True)
    best = pinned_guidance(found["guidance"])
    card["job"]["guidance_scale"] = best
    job = Job(class_labels=tuple(range(10)), guidance_scale=best, steps=50)
    for spacing in ("leading", "trailing"):
        found["spacing"].append(
            {"spacing": spacing, "guidance_scale": best} | _scores(scale, job, sweep, f"ddim(schedule='{spacing}', steps=50)")
        )
        print(found["spacing"][-1], flush=True)
    spacing = min(found["spacing"], key=lambda row: row["fid"])["spacing"]
    _set_spacing(place, spacing)
    _write(place, card)
    pipeline = _quiet(load("cifar10-dit"))
    stage = Stage(pipeline, [Recipe.parse("dpm(steps=10)")], job)
    kept = {}
    for base in stage.baselines:
        stage.enter(base)
        started = time.perf_counter()
        kept[base.label] = _features(scale, pipeline, base.job, samples)
        interval = fid_with_interval(kept[base.label], scale.reference.statistics)
        quality = {name: value.value for name, value in scale.quality(kept[base.label], job.labels(samples)).items()}
        found[base.label] = {"n": samples, "seconds": time.perf_counter() - started, "fid": str(interval), **quality}
        print(base.label, found[base.label], flush=True)
    found["floor"] = scale.floor(samples)
    jobs = {base.label: asdict(base.job) for base in stage.baselines}
    save_features(place / "baselines.safetensors", kept, scale.net, {"model": describe("cifar10-dit").sha256, "jobs": jobs})
    card["baseline_features"] = samples
    own = found[stage.baselines[0].label]
    card["scores"] = {name: own[name] for name in (scale.fid, "class agreement", "recall", "precision")}
    card["scores"] |= {"n": samples, "floor": found["floor"]}
    _write(place, card)
    _result("bundle-dit", found)


def pinned_guidance(rows: list[dict[str, Any]]) -> float:
    """The guidance of the lowest FID among those that keep 85% of the highest recall: FID alone would trade diversity away without end."""
    most = max(row["recall"] for row in rows)
    return float(min((row for row in rows if row["recall"] >= 0.85 * most), key=lambda row: row["fid"])["guidance_scale"])


def _scores(scale: Any, job: Job, samples: int, recipe: str) -> dict[str, Any]:
    from vis_accel import accelerate

    pipeline = _quiet(load("cifar10-dit"))
    with accelerate(pipeline, recipe):
        quality = scale.quality(_features(scale, pipeline, job, samples), job.labels(samples))
    return {
        "n": samples,
        "recipe": recipe,
        "fid": quality[scale.fid].value,
        "interval": str(quality[scale.fid]),
        "class agreement": quality["class agreement"].value,
        "recall": quality["recall"].value,
        "precision": quality["precision"].value,
    }


def _features(scale: Any, pipeline: Any, job: Job, samples: int) -> torch.Tensor:
    parts = [scale.net(generate(pipeline, job, indices.tolist())) for indices in torch.arange(samples).split(50)]
    return torch.cat(parts)


def _quiet(pipeline: Any) -> Any:
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _set_spacing(place: Path, spacing: str) -> None:
    path = place / "scheduler" / "scheduler_config.json"
    write_atomic(path, json.dumps(json.loads(path.read_text()) | {"timestep_spacing": spacing}, indent=2) + "\n")


def _fresh(place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def _write(place: Path, card: dict[str, Any]) -> None:
    write_atomic(place / CARD, json.dumps(card, indent=2) + "\n")
    seal(place)


def _result(name: str, found: dict[str, Any]) -> None:
    from vis_accel.machine import commit, machine, versions

    RESULTS.mkdir(exist_ok=True)
    where = {"machine": machine(), "versions": versions(), "commit": commit()}
    write_atomic(RESULTS / f"{name}.json", json.dumps(found | where, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("features", "dit"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="for features: folder with train/ and test/")
    parser.add_argument("--samples", type=int, default=5000, help="images of each baseline")
    parser.add_argument("--sweep", type=int, default=1300, help="images per point of the searches")
    given = parser.parse_args()
    if given.what == "features":
        features(given.run, given.data)
    else:
        dit(given.run, given.samples, given.sweep)
