"""Trains what a method on tokens needs on cifar10-vit, and writes it as an add-on.

    python token_pruning/train.py dynamicvit --data DIR                   predictors, and the network with them: 20 minutes on one core
    python token_pruning/train.py avit --data DIR --depth 5               a network whose tokens halt
    python token_pruning/train.py package --data DIR --keep 0.7           SPViT's selectors
    python token_pruning/train.py adavit --data DIR                       AdaViT's decision heads
    python token_pruning/train.py evit --data DIR --keep 0.7 --bits 4     the network alone, fine-tuned under evit, topk, tome or pitome
    python token_pruning/train.py tuned --data DIR --recipe "tome(r=7)"   the same under any recipe on tokens

The output folder (runs/METHOD, or --output) gets checkpoint, history, curve and addon.safetensors; a recipe names the last:
`dynamicvit(weights='runs/dynamicvit/addon.safetensors')`. A run that was killed goes on with --resume.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from vis_accel import addons, load, registry
from vis_accel.errors import VisAccelError
from vis_accel.recipe import Recipe
from vis_accel.token_pruning import train_adavit, train_avit, train_dynamicvit
from vis_accel.training import Task, TrainingConfig, train
from vis_accel.zoo import train_tokens
from vis_accel.zoo.cifar10 import SPLITS, Images, load_split

Splits = dict[str, Images]


class Training(NamedTuple):
    """One line of the table: what makes the task, how it is trained, and what of the command line it reads."""

    task: Callable[[argparse.Namespace, Splits], Task]
    config: Callable[[int], TrainingConfig]
    epochs: int
    reads: tuple[str, ...]


def _selection(options: argparse.Namespace, splits: Splits) -> Task:
    chosen: dict[str, Any] = {"selector": "trained"} if options.method == "package" else {}
    method: Any = registry.load(options.method).from_options(chosen | {"keep": options.keep})
    return train_dynamicvit.SelectionTask(method, **splits, teacher=load("cifar10-features"))


def _halting(options: argparse.Namespace, splits: Splits) -> Task:
    return train_avit.HaltingTask(**splits, teacher=load("cifar10-features"), depth=options.depth)


def _deciding(options: argparse.Namespace, splits: Splits) -> Task:
    return train_adavit.DecidingTask(**splits, teacher=load("cifar10-features"))


def _tuning(options: argparse.Namespace, splits: Splits) -> Task:
    if options.method == "tuned":
        recipe = str(Recipe.parse(options.recipe))
    else:
        given = {"keep": options.keep} if options.method in ("evit", "topk") else {"r": options.r}
        recipe = str(registry.load(options.method).from_options(given))
    return train_tokens.TokenTask(recipe, splits["train"], splits["test"], load("cifar10-features"), bits=options.bits)


TRAININGS = {
    "adavit": Training(_deciding, train_adavit.default_config, 2, ()),
    "avit": Training(_halting, train_avit.default_config, 3, ("depth",)),
    "dynamicvit": Training(_selection, train_dynamicvit.default_config, 2, ("keep",)),
    "evit": Training(_tuning, train_tokens.default_config, 3, ("keep", "bits")),
    "package": Training(_selection, train_dynamicvit.default_config, 2, ("keep",)),
    "pitome": Training(_tuning, train_tokens.default_config, 3, ("r", "bits")),
    "tome": Training(_tuning, train_tokens.default_config, 3, ("r", "bits")),
    "topk": Training(_tuning, train_tokens.default_config, 3, ("keep", "bits")),
    "tuned": Training(_tuning, train_tokens.default_config, 3, ("recipe", "bits")),
}
DEFAULTS = {"keep": 0.7, "r": 7, "depth": 5.0, "recipe": "evit(keep=0.7)", "bits": 8}


def run(options: argparse.Namespace) -> Path:
    """Trains, and returns the path of the add-on."""
    training = TRAININGS[options.method]
    output = options.output or Path("runs") / options.method
    if options.threads:
        torch.set_num_threads(options.threads)
    splits = {name: load_split(options.data, name) for name in SPLITS}
    if options.images:
        order = torch.randperm(len(splits["train"]), generator=torch.Generator().manual_seed(0))[: options.images]
        whole = splits["train"]
        splits["train"] = replace(whole, pixels=whole.pixels[order], labels=whole.labels[order])
    config = training.config(training.epochs if options.epochs is None else options.epochs)
    if options.steps:
        config = replace(config, steps=options.steps)
    result = train(
        training.task(options, splits), config, output=output, resume=options.resume, report=lambda line: print(line, flush=True)
    )
    path = output / "addon.safetensors"
    _note(path, {"epochs": config.steps * config.batch_size / len(splits["train"]), "seconds": result.seconds})
    return path


def _note(path: Path, facts: dict[str, float]) -> None:
    """Adds what only the finished run knows to the add-on, and prints all it says of itself."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        method = json.loads(file.metadata()["vis_accel"])["method"]
    model = load("cifar10-vit")
    found = addons.find(method, model, str(path))
    addons.save(path, found.tensors, method=method, model=model, facts=found.facts | facts)
    for name, value in (found.facts | facts).items():
        print(f"{name}: {value}")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("method", choices=sorted(TRAININGS))
    made.add_argument("--data", type=Path, required=True, help="folder with train/CLASS/*.jpg and test/CLASS/*.jpg")
    made.add_argument("--output", type=Path, help="default: runs/METHOD")
    made.add_argument("--epochs", type=int, help="over 45,000 images; default: 2 or 3")
    made.add_argument("--keep", type=float, help="share of the patches that stay at each stage (default 0.7)")
    made.add_argument("--r", type=int, help="patches merged in each block (default 7)")
    made.add_argument("--depth", type=float, help="of avit: the block after which tokens shall halt on average (default 5)")
    made.add_argument("--recipe", help="of tuned: what the network shall learn to live with")
    made.add_argument("--bits", type=int, choices=(8, 4), help="in which the network's change is written (default 8; 4 is half the file)")
    made.add_argument("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    made.add_argument("--threads", type=int)
    made.add_argument("--images", type=int, help="train on so many images only, for a trial")
    made.add_argument("--steps", type=int, help="stop after so many steps, for a trial")
    return made


def main() -> int:
    made = parser()
    options = made.parse_args()
    reads = TRAININGS[options.method].reads
    for name, default in DEFAULTS.items():
        if getattr(options, name) is None:
            setattr(options, name, default)
        elif name not in reads:
            made.error(f"{options.method} does not read --{name}; it reads {', '.join('--' + other for other in reads) or 'none of these'}")
    for name in ("epochs", "images", "steps", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            made.error(f"--{name} must be at least 1; got {value}")
    try:
        print(f"written: {run(options)}")
    except VisAccelError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
