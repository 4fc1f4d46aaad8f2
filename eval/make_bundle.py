"""Turns training runs into bundled models: installs the weights, measures what ships with them, writes cards and hashes.

    python eval/make_bundle.py features --run runs/cifar10-features --data DIR     first: everything else is scored with it
    python eval/make_bundle.py vit --run runs/cifar10-vit --data DIR
    python eval/make_bundle.py dit --run runs/cifar10-dit --data DIR [--guidance 5]
    python eval/make_bundle.py unet --run runs/cifar10-unet --data DIR
    python eval/make_bundle.py cards                                               the Markdown cards again, from their records

`features` makes the reference (statistics of the training images) and the features of the test images, whose FID is the floor. `dit`
looks for the guidance of the lowest FID that keeps recall, unless it is given, and stores the features of the baselines' images at that
setting. Without --run what is installed is measured again. The facts are in eval/results/bundle-*.json, images in runs/images.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel.eval.features import extract
from vis_accel.eval.fid import Statistics, fid_with_interval, real_floor
from vis_accel.eval.reference import make_reference, save_reference
from vis_accel.eval.yardstick import Yardstick
from vis_accel.files import write_atomic
from vis_accel.gallery import Gallery
from vis_accel.generation import Job
from vis_accel.zoo import MODELS, describe, load
from vis_accel.zoo.bundled import CARD, FOLDER, seal
from vis_accel.zoo.cifar10 import CLASSES, SPLITS, Images
from vis_accel.zoo.cifar10 import load_split as read_split
from vis_accel.zoo.export import contact_sheet
from vis_accel.zoo.measured import feature_net, save_features, yardstick_for
from vis_accel.zoo.model_card import TEXT, TRAINING, markdown

RESULTS = Path(__file__).parent / "results"
DATA = (
    "CIFAR-10 (Krizhevsky 2009), a 32 x 32 JPEG copy of quality about 75 with 4:2:0 chroma; "
    "45,000 training images, 5,000 set aside as calibration"
)
load_split = cache(read_split)
LARGE = 10_000  # images of the scores in the card of cifar10-dit
SCORED_WITH = "dpm(steps=10)"  # for the large samples: 10,000 images at the stock number of calls would take hours


def features(run: Path | None, data: Path) -> None:
    """Installs the feature net and what it sees of the real images."""
    place = FOLDER / "cifar10-features"
    card = _card("cifar10-features", "features", "convolutional classifier, 64 features before its head", classes=list(CLASSES))
    if run is not None:
        _install_module(run, place, card)
    net = feature_net()
    test, train = load_split(data, "test"), load_split(data, "train")
    card["scores"] = {"top-1": _top1(net.net, test), "top-1 of the calibration images": _top1(net.net, load_split(data, "calibration"))}
    real = extract(net, train.pixels.split(500))
    save_reference(place / "reference.safetensors", make_reference(real, net, images="cifar10-jpeg", split="train"))
    held_out = extract(net, test.pixels.split(500))
    facts = {"images": "cifar10-jpeg", "split": "test", "sha256": test.sha256}
    save_features(place / "held_out.safetensors", {"test": held_out}, net, facts)
    floor = {n: real_floor(held_out, Statistics.of(real), n) for n in (1280, 2500, 5000, 10000)}
    found = {"top1": card["scores"]["top-1"], "floor": floor, "sha256": {split: load_split(data, split).sha256 for split in SPLITS}}
    _write(place, card)
    _result("bundle-features", found)


def vit(run: Path | None, data: Path) -> None:
    """Installs the vision transformer."""
    place = FOLDER / "cifar10-vit"
    card = _card("cifar10-vit", "classifier", "timm VisionTransformer with a convolutional stem, 65 tokens", classes=list(CLASSES))
    if run is not None:
        _install_module(run, place, card)
    model = load("cifar10-vit")
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    splits = {"top-1": "test", "top-1 of the calibration images": "calibration"}
    card["scores"] = {name: _top1(lambda images: model((images - mean) / std), load_split(data, split)) for name, split in splits.items()}
    _write(place, card)
    _result("bundle-vit", {"top1": card["scores"]["top-1"], "parameters": sum(p.numel() for p in model.parameters())})


def dit(run: Path | None, data: Path, guidance: float | None, samples: int, sweep: int) -> None:
    """Installs the pipeline, finds its setting and stores its baselines."""
    place = FOLDER / "cifar10-dit"
    card = _card("cifar10-dit", "pipeline", "class-conditional latent diffusion at 32 x 32: a stock DiTPipeline, 16 tokens")
    card |= {"classes": list(CLASSES), "sampler": "ddim(steps=50)"}
    card["job"] = {"seed": 0, "class_labels": list(range(10)), "guidance_scale": guidance or 2.0, "steps": 50}
    if run is not None:
        _install_pipeline(run, place, card)
    scale = _yardstick("cifar10-dit")
    found = _earlier("bundle-dit", ("guidance", "spacing", "scanned with"))
    if guidance is None:
        found = {"scanned with": describe("cifar10-features").files["model.safetensors"], "guidance": [], "spacing": []}
        for tried in (1.5, 2.0, 3.0, 4.0, 5.0, 6.5):
            job = Job(**card["job"] | {"guidance_scale": tried})
            found["guidance"].append({"guidance_scale": tried} | _scores(scale, "cifar10-dit", job, sweep, "dpm(steps=12)"))
        card["job"]["guidance_scale"] = pinned_guidance(found["guidance"])
        job = Job(**card["job"])
        for spacing in ("leading", "trailing"):
            row = _scores(scale, "cifar10-dit", job, sweep, f"ddim(schedule='{spacing}', steps=50)")
            found["spacing"].append({"spacing": spacing, "guidance_scale": job.guidance_scale} | row)
        _set_spacing(place, min(found["spacing"], key=lambda row: row["fid"])["spacing"])
        _write(place, card)
    gallery = Gallery("cifar10-dit", (SCORED_WITH,), Job(**card["job"]))
    kept = {}
    for base in gallery.stage.baselines:
        kept[base.label] = extract(scale.net, gallery.images(base, samples).split(500))
        found[base.label] = _quality(scale, kept[base.label], base.job)
    trip = _round_trip(scale, load_split(data, "test"))
    large = _large(scale, gallery, place, LARGE)  # adds the grid: the folder does not load again until it is sealed
    found |= {SCORED_WITH: large, "floor": scale.floor(samples), "round trip": trip}
    card["scores"] = _named(large, scale, SCORED_WITH) | _named(found[gallery.stage.baselines[0].label], scale, "stock DDIM, 50 steps")
    card["scores"] |= {
        "autoencoder: round trip PSNR of the test images, dB": trip["psnr"],
        f"autoencoder: round trip {scale.fid}": trip["fid"],
    }
    jobs = {base.label: asdict(base.job) for base in gallery.stage.baselines}
    save_features(place / "baselines.safetensors", kept, scale.net, {"model": describe("cifar10-dit").sha256, "jobs": jobs})
    card["baseline_features"] = samples
    _write(place, card)
    _result("bundle-dit", found)


def unet(run: Path | None, samples: int) -> None:
    """Installs the pixel pipeline and scores it."""
    place = FOLDER / "cifar10-unet"
    card = _card("cifar10-unet", "pipeline", "unconditional diffusion in pixels at 32 x 32: a stock DDPMPipeline")
    card |= {"sampler": SCORED_WITH, "job": {"seed": 0, "steps": 100}}  # steps: of the stock row in a benchmark, instead of 1000
    if run is not None:
        _install_pipeline(run, place, card)
    scale = _yardstick("cifar10-unet")
    large = _large(scale, Gallery("cifar10-unet", (SCORED_WITH,), Job(**card["job"])), place, samples)
    card["scores"] = _named(large, scale, SCORED_WITH)
    _write(place, card)
    _result("bundle-unet", {SCORED_WITH: large})


def cards() -> None:
    """Writes README.md of every model from its record."""
    for name in MODELS:
        place = FOLDER / name
        write_atomic(place / TEXT, markdown(place))
        seal(place)


def record(name: str, runs: list[tuple[str, Path]], data: Path, weaknesses: list[str], facts: dict[str, Any]) -> None:
    """Writes training.json: what the trainings of a model recorded, and the curves they drew."""
    place = FOLDER / name
    parts = []
    for part, run in runs:
        parts.append({"name": part} | json.loads((run / "history.json").read_text()))
        shutil.copy(run / "curve.png", place / f"curve-{part}.png")
    hashes = {split: load_split(data, split).sha256 for split in SPLITS}
    found = {"parts": parts, "sha256": hashes, "weaknesses": weaknesses} | facts
    write_atomic(place / TRAINING, json.dumps(found, indent=1) + "\n")


def pinned_guidance(rows: list[dict[str, Any]]) -> float:
    """The guidance of the lowest FID among those that keep 85% of the highest recall: FID alone would trade diversity away without end."""
    most = max(row["recall"] for row in rows)
    return float(min((row for row in rows if row["recall"] >= 0.85 * most), key=lambda row: row["fid"])["guidance_scale"])


def _large(scale: Yardstick, gallery: Gallery, place: Path, samples: int) -> dict[str, Any]:
    """Scores of that many images, and the grid: a class a row where there are classes."""
    contender = gallery.stage.candidates[0]
    images = gallery.images(contender, samples)
    classes = len(contender.job.class_labels) or 1
    order = [row + classes * column for row in range(classes) for column in range(100 // classes)]
    contact_sheet(images[order], place / "grid.png", columns=10)
    return _quality(scale, extract(scale.net, images.split(500)), contender.job)


def _scores(scale: Yardstick, model: str, job: Job, samples: int, recipe: str) -> dict[str, Any]:
    gallery = Gallery(model, (recipe,), job)
    contender = gallery.stage.candidates[0]
    row = {"recipe": recipe} | _quality(scale, extract(scale.net, gallery.images(contender, samples).split(500)), contender.job)
    print(row, flush=True)
    return row


def _quality(scale: Yardstick, seen: Tensor, job: Job) -> dict[str, Any]:
    n = len(seen)
    quality = {name: value.value for name, value in scale.quality(seen, job.labels(n) if job.class_labels else None).items()}
    interval = fid_with_interval(seen, scale.reference.statistics)
    return {"n": n, "fid": quality.pop(scale.fid), "interval": str(interval), "floor": scale.floor(n)} | quality


def _named(row: dict[str, Any], scale: Yardstick, sampler: str) -> dict[str, float]:
    """Scores for a card: each name says by which sampler, from how many images."""
    n = f"n = {row['n']:,}"
    found = {f"{scale.fid}, {sampler}, {n}": row["fid"]}
    if row.get("floor") is not None:
        found[f"floor: {scale.fid} of held-out real images, {n}"] = row["floor"]
    return found | {f"{key}, {sampler}, {n}": row[key] for key in ("class agreement", "recall", "precision") if key in row}


def _round_trip(scale: Yardstick, test: Images) -> dict[str, float]:
    """PSNR in dB and FID of the test images through the autoencoder, to the 8-bit grid and back."""
    vae = load("cifar10-dit").vae
    parts, errors = [], []
    for pixels in test.pixels.split(250):
        with torch.no_grad():
            again = vae.decode(vae.encode(pixels.float() / 127.5 - 1).latent_dist.mean).sample
        parts.append(((again + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
        errors.append((parts[-1].float() - pixels.float()).square().mean(dim=(1, 2, 3)))
    psnr = 10 * torch.log10(255**2 / torch.cat(errors)).mean()
    seen = extract(scale.net, parts)
    return {"n": len(seen), "psnr": float(psnr), "fid": fid_with_interval(seen, scale.reference.statistics).value}


def _top1(model: Any, images: Images) -> float:
    with torch.no_grad():
        predicted = torch.cat([model(part.float() / 255).argmax(1) for part in images.pixels.split(500)])
    return float((predicted == images.labels).double().mean())


def _yardstick(name: str) -> Yardstick:
    scale = yardstick_for(name, None)
    if scale is None:
        raise SystemExit("run the features step first")
    return scale


def _set_spacing(place: Path, spacing: str) -> None:
    path = place / "scheduler" / "scheduler_config.json"
    write_atomic(path, json.dumps(json.loads(path.read_text()) | {"timestep_spacing": spacing}, indent=2) + "\n")


def _card(name: str, kind: str, summary: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "summary": summary, "license": "Apache-2.0", "trained_on": DATA} | more


def _install_module(run: Path, place: Path, card: dict[str, Any]) -> None:
    _fresh(place)
    shutil.copy(run / "model.safetensors", place / "model.safetensors")
    _write(place, card)


def _install_pipeline(run: Path, place: Path, card: dict[str, Any]) -> None:
    _fresh(place)
    shutil.copytree(run / "pipeline", place, dirs_exist_ok=True)
    _write(place, card)


def _fresh(place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)


def _write(place: Path, card: dict[str, Any]) -> None:
    write_atomic(place / CARD, json.dumps(card, indent=2) + "\n")
    seal(place)


def _earlier(name: str, keys: tuple[str, ...]) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return {key: value for key, value in json.loads(path.read_text()).items() if key in keys} if path.exists() else {}


def _result(name: str, found: dict[str, Any]) -> None:
    from vis_accel.machine import commit, machine, versions

    RESULTS.mkdir(exist_ok=True)
    where = {"machine": machine(), "versions": versions(), "commit": commit()}
    write_atomic(RESULTS / f"{name}.json", json.dumps(found | where, indent=1) + "\n")


WEAK: dict[str, list[str]] = {
    "cifar10-features": [
        "Trained on JPEG images at 32 x 32: its features, and every FID in their name, say nothing of larger images or of other data.",
        "Errs most between cat and dog, so class agreement is least reliable there.",
    ],
    "cifar10-vit": [
        "Learnt from cifar10-features, so its errors resemble those of the network that scores the diffusion models.",
        "Sees 32 x 32 images of ten classes; no other use is meant.",
    ],
    "cifar10-dit": [
        "Small and briefly trained: many images are not recognised as their class (class agreement above), and recall is low.",
        "Fine detail is limited by the autoencoder, which was trained without a perceptual or adversarial term.",
        "Generated images were scored by a network that saw the same training images.",
    ],
    "cifar10-unet": [
        "Briefly trained: shapes are often not those of an object.",
        "Its stock sampler takes 1000 calls; the scores here are those of few-step samplers.",
    ],
}  # fmt: skip


def main(given: argparse.Namespace) -> None:
    """One step, then its record and card."""
    if given.what == "cards":
        return cards()
    name = f"cifar10-{given.what}"
    if given.what == "dit":
        dit(given.run, given.data, given.guidance, given.samples, given.sweep)
    elif given.what == "unet":
        unet(given.run, given.samples)
    else:
        {"features": features, "vit": vit}[given.what](given.run, given.data)
    if given.run is not None:
        runs = [(name, given.run)]
        if given.what == "dit":
            runs = [("cifar10-autoencoder", given.run.parent / "cifar10-autoencoder"), *runs]
        grid = {"dit": {"grid": f"ten samples of each class by {SCORED_WITH}, a class a row"}}.get(given.what, {})
        record(name, runs, given.data, WEAK[name], grid)
    write_atomic(FOLDER / name / TEXT, markdown(FOLDER / name))
    seal(FOLDER / name)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("features", "vit", "dit", "unet", "cards"))
    parser.add_argument("--run", type=Path, help="the training's output folder; default: measure what is installed")
    parser.add_argument("--data", type=Path, help="folder with train/ and test/")
    parser.add_argument("--guidance", type=float, help="for dit: skip the search")
    parser.add_argument("--samples", type=int, default=5000, help="for dit: of each baseline; for unet: all")
    parser.add_argument("--sweep", type=int, default=1300, help="for dit: images per point of the search")
    arguments = parser.parse_args()
    if arguments.what != "cards" and arguments.data is None:
        parser.error("--data DIR is needed: the folder with train/ and test/")
    main(arguments)
