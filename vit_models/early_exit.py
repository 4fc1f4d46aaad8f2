"""The exits of cifar10-vit: training, and the comparison with shallower models trained the same way.

    python vit_models/early_exit.py train --data DIR --output runs/early-exit          25 minutes on one core; writes addon.safetensors
    python vit_models/early_exit.py shallow --blocks 6 --data DIR --output runs/shallow-6
    python vit_models/early_exit.py compare --data DIR --shallow runs/shallow-6 ...    writes vit_models/results/early-exit.json

`compare` uses the add-on that ships (or --weights FILE). Accuracy is on the 10,000 test images; time is interleaved in one process, at
batch 64 and 1, on test images drawn at random, everything compiled: the models whole, the exits by segments.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vis_accel import accelerate, load
from vis_accel.early_exit.heads import HEADS
from vis_accel.early_exit.train import DEFAULT_EXITS, ExitTask, default_config
from vis_accel.eval.accuracy import top1
from vis_accel.eval.speed import interleave
from vis_accel.files import write_atomic
from vis_accel.handle import Handle
from vis_accel.machine import commit, machine, versions
from vis_accel.training import train
from vis_accel.zoo.cifar10 import Images, load_split
from vis_accel.zoo.train_tokens import Crops, FineTuning

RESULTS = Path(__file__).parent / "results" / "early-exit.json"
BATCHES = (64, 1)
TIMED = 256  # images a timed call, in batches


def shallower(blocks: int) -> Any:
    """cifar10-vit without its blocks from `blocks` on."""
    model = load("cifar10-vit")
    if not 1 <= blocks < len(model.blocks):
        raise SystemExit(f"--blocks must be 1 to {len(model.blocks) - 1}; got {blocks}.")
    model.blocks = model.blocks[:blocks]
    return model


class ShallowTask(FineTuning):
    """Fine-tunes a shallower model as the exits are tuned: the same images, teacher and number of steps.

    Args:
        blocks: how many it keeps.
        train, test: the images.
        teacher: the bundled feature network.
    """

    def __init__(self, blocks: int, train: Images, test: Images, teacher: Any) -> None:
        model = shallower(blocks)
        super().__init__(f"cifar10-vit, {blocks} blocks", model, Crops(train, teacher, model.pretrained_cfg), test)

    def export(self, model: nn.Module, folder: Path) -> None:
        from safetensors.torch import save

        write_atomic(folder / "model.safetensors", save({name: value.contiguous() for name, value in model.state_dict().items()}))


@torch.inference_mode()
def answers(model: Any, inputs: Tensor, batch: int = 64) -> Tensor:
    """Logits of normalised images, in batches."""
    return torch.cat([model(part) for part in inputs.split(batch)])


def compare(data: Path, weights: str | None, epsilons: list[float], shallow: list[Path], budget: float) -> dict[str, Any]:
    """Accuracy and speed of the full model, of the exits at each epsilon, and of the shallower models."""
    images, full = load_split(data, "test"), load("cifar10-vit")
    mean, std = (torch.tensor(full.pretrained_cfg[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    inputs = (images.pixels.float() / 255 - mean) / std
    option = "" if weights is None else f", weights={weights!r}"
    people: dict[str, tuple[Any, str | None]] = {"full": (full, None)}
    people |= {f"early-exit(epsilon={e:g})": (load("cifar10-vit"), f"early-exit(epsilon={e!r}{option}") for e in epsilons}
    for folder in shallow:
        model, state = None, _weights(folder / "model.safetensors")
        model = shallower(1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")))
        model.load_state_dict(state)
        people[f"{len(model.blocks)} blocks"] = (model, None)
    rows: dict[str, dict[str, Any]] = {}
    for name, (model, recipe) in people.items():
        handle = None if recipe is None else accelerate(model, f"{recipe})")
        found = top1(answers(model, inputs), images.labels)
        with FlopCounterMode(display=False) as counter:
            answers(model, inputs[:2000])
        rows[name] = {"top1": [found.value, found.low, found.high], "GMACs": counter.get_total_flops() / 2 / 2000 / 1e9}
        if handle is not None:
            rows[name] |= handle.report()
            handle.remove()
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))[:TIMED]
    for batch in BATCHES:
        _time(people, inputs[order], batch, rows, budget)
    facts = {"n": len(images), "threads": torch.get_num_threads(), "machine": machine(), "versions": versions(), "commit": commit()}
    return facts | {"rows": rows}


def _time(people: dict[str, tuple[Any, str | None]], inputs: Tensor, batch: int, rows: dict[str, dict[str, Any]], budget: float) -> None:
    """Adds images per second and the paired ratio to the full model at this batch."""
    handles: list[Handle] = []
    runs: dict[str, Callable[[], object]] = {}
    for name, (model, recipe) in people.items():
        handles.append(accelerate(model, "compile" if recipe is None else f"{recipe}, compile=True)"))
        runs[name] = lambda model=model: answers(model, inputs, batch)  # type: ignore[misc]
    for run in runs.values():
        run()  # compiles, for every size of the batch that occurs; not in the budget
    times = interleave(runs, rounds=100, warmup=1, budget_s=budget)
    for name in people:
        ratio = times.ratio(name, "full")
        rows[name][f"batch {batch}"] = {
            "images_per_second": len(inputs) / times.median(name), "ratio": [ratio.value, ratio.low, ratio.high],
            "unstable": times.unstable(name),
        }  # fmt: skip
    for handle in handles:
        handle.remove()


def _weights(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    found: dict[str, Tensor] = load_file(path)
    return found


def _exit(text: str) -> tuple[int, str]:
    """`2:local`: an exit after block 2."""
    block, _, design = text.partition(":")
    if not block.isdigit() or design not in HEADS:
        raise SystemExit(f"--exits takes BLOCK:DESIGN, a number and one of {', '.join(HEADS)}; got {text!r}.")
    return int(block), design


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "shallow", "compare"))
    parser.add_argument("--data", type=Path, required=True, help="folder with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--output", type=Path, help="of train and shallow; default: runs/WHAT")
    parser.add_argument("--epochs", type=int, default=3)
    shown = " ".join(f"{block}:{design}" for block, design in DEFAULT_EXITS)
    parser.add_argument("--exits", nargs="*", metavar="BLOCK:DESIGN", help=f"of train; default: {shown}")
    parser.add_argument("--blocks", type=int, default=6, help="of shallow")
    parser.add_argument("--frozen", action="store_true", help="train heads alone")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--shallow", type=Path, nargs="*", default=[], help="folders of shallower models, for compare")
    parser.add_argument("--weights", help="of compare: a file of exits; default: what ships")
    parser.add_argument("--epsilon", type=float, nargs="*", default=[0.01], help="of compare")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of timing for each batch")
    options = parser.parse_args()
    if options.what == "compare":
        found = compare(options.data, options.weights, options.epsilon, options.shallow, options.budget)
        write_atomic(RESULTS, json.dumps(found, indent=1) + "\n")
        for name, row in found["rows"].items():
            print(name, f"{row['top1'][0]:.2%}", *(f"batch {b}: {row[f'batch {b}']['ratio']}" for b in BATCHES), row.get("exits", ""))
        return
    exits = [_exit(text) for text in options.exits or ()] or DEFAULT_EXITS
    parts = {split: load_split(options.data, split) for split in ("train", "calibration", "test")}
    teacher = load("cifar10-features")
    task: Any = (
        ExitTask(parts["train"], parts["calibration"], parts["test"], teacher, exits=exits, frozen=options.frozen)
        if options.what == "train"
        else ShallowTask(options.blocks, parts["train"], parts["test"], teacher)
    )
    result = train(
        task, default_config(options.epochs), output=options.output or Path("runs") / options.what, resume=options.resume, report=print
    )
    print(result.scores)


if __name__ == "__main__":
    main()
