"""The card of a fine-tuning: data, network, what was trained, how long, how well, where; as JSON and as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vis_accel.eval.interval import Interval
from vis_accel.files import write_atomic
from vis_accel.machine import commit, machine, versions

if TYPE_CHECKING:
    from vis_accel.finetuning.data import Folder
    from vis_accel.finetuning.task import FinetuneTask
    from vis_accel.training import TrainingConfig, TrainingResult

__all__ = ["CARD", "made", "write"]

CARD = "finetune.json"
_MARKDOWN = "finetune.md"


def made(
    task: FinetuneTask, folder: Folder, config: TrainingConfig, result: TrainingResult, *, before: dict[str, Interval], command: str,
    processes: int,
) -> dict[str, Any]:  # fmt: skip
    """The card as plain values, ready for JSON; shares are given with their 95% Wilson intervals."""
    student, opened = task.student, task.opened
    scores = {name: _share(value) for name, value in task.result.items() if isinstance(value, Interval)}
    return {
        "model": task.options.model,
        "notes": list(opened.notes),
        "command": command,
        "options": task.options.recorded(),
        "data": {
            "folder": str(folder.root), "sha256_of_names_and_sizes": folder.sha256, "classes": list(folder.classes),
            "skipped": folder.skipped,
            "train": len(folder.train), "validation": len(folder.validation), "validation_is": folder.validation.name,
            "test": None if folder.test is None else len(folder.test),
        },
        "size": opened.size,
        "mode": task.options.mode,
        "parameters": {"all": task.result["parameters"], "trained": student.trained},
        "recipe": None if task.handle is None else task.options.recipe,
        "steps": result.images // config.batch_size,
        "epochs": round(result.images / len(folder.train), 3),
        "batch": config.batch_size,
        "stopped_early": result.images < config.steps * config.batch_size,
        "seconds": result.seconds,
        "images_per_second": round(result.images / max(result.seconds, 1e-9), 1),
        "loss": result.history[-1]["loss"],
        "top1_before": {name: _share(value) for name, value in before.items()},
        "top1": scores,
        "merge_difference": task.result["merge_difference"] if task.adapters else None,
        "seed": task.options.seed,
        "processes": processes,
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }  # fmt: skip


def write(card: dict[str, Any], folder: Path) -> None:
    """Writes both forms."""
    write_atomic(folder / CARD, json.dumps(card, indent=1) + "\n")
    write_atomic(folder / _MARKDOWN, _markdown(card))


def _share(interval: Interval) -> dict[str, float | int]:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}


def _markdown(card: dict[str, Any]) -> str:
    data, parameters, where = card["data"], card["parameters"], card["machine"]
    share = parameters["trained"] / parameters["all"]
    length = f"{card['epochs']:g} epochs, {card['steps']} steps of {card['batch']}"
    rows = [
        ("model", f"{card['model']}, {card['size']} px" + "".join(f"; {note}" for note in card["notes"])),
        ("data", f"{data['folder']}: {len(data['classes'])} classes, {_counts(data)}"),
        ("trained", f"{card['mode']}: {parameters['trained']:,} parameters, {share:.1%} of the {parameters['all']:,} of the result"),
        ("length", length + (", stopped early" if card["stopped_early"] else "")),
        ("time", f"{card['seconds']:.0f} s, {card['images_per_second']:g} images/s, evaluations included"),
        ("seed", str(card["seed"])),
        ("machine", f"{where['processor']}, {where['cores']} cores, {where['threads']} threads, {where['isa']}"
                    + (f", {where['accelerator']}" if where["accelerator"] else "")),
        ("versions", ", ".join(f"{name} {number}" for name, number in card["versions"].items())),
        ("command", f"`{card['command']}`"),
    ]  # fmt: skip
    if card["recipe"]:
        rows.insert(3, ("tokens", f"`{card['recipe']}` on during training"))
    if card["merge_difference"] is not None:
        rows.insert(3, ("merging", f"the adapters are part of the weights; logits moved by {card['merge_difference']:.1g} of the largest"))
    lines = [f"# {card['model']}, fine-tuned", "", "| images | top-1 | 95% interval | n |", "|---|---|---|---|"]
    for when, scores in ((", before training", card["top1_before"]), ("", card["top1"])):
        lines += [_score(name.replace("validation", str(data["validation_is"])) + when, value) for name, value in scores.items()]
    lines += ["", *_caveats(card), "| | |", "|---|---|", *(f"| {name} | {text.replace('|', chr(92) + '|')} |" for name, text in rows)]
    lines += ["", "![loss and top-1](curve.png)", "", "```python", f'timm.create_model("local-dir:{"FOLDER"}", pretrained=True)', "```", ""]
    return "\n".join(lines)


def _caveats(card: dict[str, Any]) -> list[str]:
    """What a reader must know of the numbers."""
    found = []
    if card["options"]["patience"] is not None:
        found.append(f"The weights are those of the best evaluation on {card['data']['validation_is']}, so their score on it is too good.")
    if card["options"]["mode"] in ("lora", "dora", "pissa"):
        found.append("Adapters save memory of the optimiser and of checkpoints; on small networks they do not save time.")
    return [*found, ""] if found else []


def _score(name: str, share: dict[str, Any]) -> str:
    return f"| {name} | {share['value']:.2%} | {share['low']:.2%} to {share['high']:.2%} | {share['n']} |"


def _counts(data: dict[str, Any]) -> str:
    parts = [f"{data['train']} images to train", f"{data['validation']} to validate ({data['validation_is']})"]
    parts += [f"{data['test']} to test"] if data["test"] is not None else []
    return ", ".join(parts) + (f"; {data['skipped']} did not open and were left out" if data["skipped"] else "")
