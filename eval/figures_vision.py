"""The figures of the vision half, each a function from results files to Markdown; `write_figures.py` puts them into the pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vis_accel.addons import shipped
from vis_accel.record import Card, Quantity, Record

ROOT = Path(__file__).resolve().parents[1]
NOT_YET = "Not measured yet."


def token_speed() -> str:
    """Saved work against saved time, by `token_pruning/sweep.py`."""
    path = ROOT / "token_pruning/results/speed.json"
    if not path.exists():
        return NOT_YET
    rows = json.loads(path.read_text()).values()
    where = next(iter(rows))
    machine = where["machine"]
    lines = [
        f"{machine['processor']}, {where['threads']} threads, float32, torch {machine['torch']}.",
        "| model, batch | method | ratio of multiply-adds | speed-up, both compiled | of the ratio (lower end) | bar | choosing |\n"
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        value, low, high = row["ratio"]
        bar = "-" if row["bar"] is None else f"{row['bar']:.0%}: {'reached' if row['share_of_flop_ratio'] >= row['bar'] else 'missed'}"
        choosing = f"{row['choosing_share']:.1%}" if "choosing_share" in row else "-"
        slower = "" if value >= 1 else ", slower"
        lines[-1] += (
            f"\n| {row['model'].removeprefix('timm/')}, {row['batch']} | `{row['recipe']}` | {row['flop_ratio']:.2f} | "
            f"{value:.2f} [{low:.2f}, {high:.2f}]{slower} | {row['share_of_flop_ratio']:.0%} | {bar} | {choosing} |"
        )
    missed = [row for row in rows if row["bar"] is not None and row["share_of_flop_ratio"] < row["bar"]]
    if missed:
        lines.append(f"{len(missed)} of the bars are missed: fewer multiply-adds, but less time saved than hoped for.")
    return "\n\n".join(lines)


def token_accuracy() -> str:
    """Cards of cifar10-vit under recipes."""
    cards = sorted((ROOT / "token_pruning/results").glob("cifar10-vit*/card.json"))
    return "\n\n".join(_classifier_card(Card.load(path)) for path in cards) if cards else NOT_YET


def _classifier_card(card: Card) -> str:
    base = card.baseline
    stock = [row.recipe for row in card.rows if not row.recipe_form.get("methods") or row.recipe.endswith("compiled")]
    lead = (
        f"`{base.model}`, n = {base.n:,} ({base.data}), batch {base.speed.batch if base.speed else '-'} in the timing; "
        f"{base.machine['processor']}, {base.machine['threads']} threads, {base.settings.get('dtype')}."
    )
    head = ["", "GMACs", "top-1", "difference, paired", "agreement", "images/s", *(f"x {name}" for name in stock)]
    lines = [head, ["---"] * len(head)]
    for row in card.rows:
        quality = [_short(row.quality.get(name), 100) for name in ("top-1", "top-1 difference", "agreement")]
        work = row.counters.get("GMACs")
        ratios = [_short(row.speed.ratios.get(name)) if row.speed else "-" for name in stock]
        rate = _short(row.speed.images_per_second) if row.speed else "-"
        lines.append(
            [f"`{row.recipe}`" if row.recipe_form.get("methods") else row.recipe, f"{work:.4g}" if work else "-", *quality, rate, *ratios]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return "\n\n".join([lead, table, *_verdicts(card.records)])


def _verdicts(rows: tuple[Record, ...]) -> list[str]:
    return [f"`{row.recipe}`: {row.verdict}" for row in rows if row.verdict]


def addons() -> str:
    """What ships for cifar10-vit beside its weights."""
    rows = []
    for name, path in shipped().items():
        if path.parent.name != "cifar10-vit":
            continue
        facts = _facts(path)
        before, after = facts.get("top1_before"), facts.get("top1")
        numbers = " | ".join("-" if value is None else f"{value:.2%}" for value in (before, after))
        work = f"{facts['gmacs'] / facts['gmacs_before']:.0%}" if "gmacs" in facts else "-"
        numbers = f"{numbers} | {work}"
        rows.append(f"| `{name}` | `{facts['method']}` | `{facts.get('recipe', '-')}` | {numbers} | {path.stat().st_size / 1e6:.2f} MB |")
    if not rows:
        return "None ship yet."
    head = "| name | for the method | trained under | top-1 before | top-1 after | multiply-adds left | size |"
    return "\n".join([head, "|---|---|---|---|---|---|---|", *rows])


def onnx() -> str:
    """How often exported files agree with PyTorch."""
    path = ROOT / "token_pruning/results/onnx.json"
    if not path.exists():
        return NOT_YET
    facts = json.loads(path.read_text())
    rows = []
    for row in facts["rows"]:
        batch, same = "any" if row["dynamic_batch"] else "fixed", f"{row['agreement']:.2%} of {row['n']}"
        rows.append(f"| `{row['recipe']}` | {batch} | {same} | {row['difference']:.1e} |")
    head = "| recipe | batch | same class | largest difference of a logit, relative |\n|---|---|---|---|\n"
    return f"{facts['model']}, onnxruntime {facts['onnxruntime']}, float32.\n\n{head}" + "\n".join(rows)


def long_run() -> str:
    """The fastest sampler that equals DDIM-100, timed against it."""
    path = ROOT / "samplers/results/ddim100"
    if not (path / "card.json").exists():
        return NOT_YET
    card = Card.load(path)
    row = next(row for row in card.records if row.recipe.startswith("ipndm"))
    ratio = row.speed.ratios[card.baseline.recipe] if row.speed else None
    return (
        f"`{row.recipe}` makes {_short(ratio)} times the images a second of {card.baseline.recipe} on `{card.baseline.model}` "
        f"(batch {row.speed.batch if row.speed else '-'}, interleaved; the quality of both is in the table above)."
    )


def early_exit() -> str:
    """Exits beside shallower models, by `vit_models/early_exit.py compare`."""
    path = ROOT / "vit_models/results/early-exit.json"
    if not path.exists():
        return NOT_YET
    found = json.loads(path.read_text())
    lines = [
        f"n = {found['n']:,}; {found['machine']['processor']}, {found['threads']} threads, float32.",
        "| | top-1 | GMACs, mean | leave by each exit, the model last | batch 64: x full | batch 1: x full |\n|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        value, low, high = (100 * share for share in row["top1"])
        exits = "-" if "exits" not in row else ", ".join(f"{count / sum(row['exits']):.0%}" for count in row["exits"])
        ratios = [_ratio(row[f"batch {batch}"]["ratio"]) for batch in (64, 1)]
        lines[-1] += f"\n| `{name}` | {value:.2f} [{low:.2f}, {high:.2f}] | {row['GMACs']:.4f} | {exits} | {' | '.join(ratios)} |"
    return "\n\n".join(lines)


def edge_survey() -> str:
    """Edge families by runtime, by `vit_models/survey.py`."""
    path = ROOT / "vit_models/results/survey.json"
    if not path.exists():
        return NOT_YET
    found = json.loads(path.read_text())
    lines = [
        f"{found['machine']['processor']}, {found['settings']['threads']} threads, float32. Images a second.",
        "| model | tokens | GMACs | parameters, M | batch | eager | compiled | OpenVINO |\n|---|---|---|---|---|---|---|---|",
    ]
    for name, row in found["rows"].items():
        for batch in (key for key in row if key.startswith("batch ")):
            cells = [_runtime(row[batch].get(runtime, {})) for runtime in ("eager", "compiled", "openvino")]
            facts = f"{row['tokens'] or '-'} | {row['gmacs']:.2f} | {row['parameters'] / 1e6:.1f}"
            lines[-1] += f"\n| {name} | {facts} | {batch.removeprefix('batch ')} | {' | '.join(cells)} |"
    return "\n\n".join(lines)


def edge_finetune() -> str:
    """Short fine-tunings, by `vit_models/finetune_edge.py`."""
    path = ROOT / "vit_models/results/finetune-edge.json"
    if not path.exists():
        return NOT_YET
    found = json.loads(path.read_text())
    lines = ["| model | size | top-1 | n |\n|---|---|---|---|"]
    for row in found["rows"] if isinstance(found["rows"], list) else found["rows"].values():
        score = row["top1"]
        value = score["value"] if isinstance(score, dict) else score
        n = score.get("n", 10 * found["test_per_class"]) if isinstance(score, dict) else 10 * found["test_per_class"]
        lines[0] += f"\n| {row['model']} | {row['size']} | {value:.1%} | {n:,} |"
    return lines[0]


def _runtime(cell: dict[str, Any]) -> str:
    if "images_per_second" not in cell:
        return "failed" if "error" in cell else "-"
    return f"{cell['images_per_second']:.3g}"


def _ratio(ratio: list[float]) -> str:
    value, low, high = ratio
    return f"{value:.2f} [{low:.2f}, {high:.2f}]" + ("" if value >= 1 else ", slower")


def _facts(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["vis_accel"])
    return found


def _short(quantity: Quantity | None, factor: float = 1.0) -> str:
    if quantity is None or quantity.value is None:
        return "-"
    ends = "" if quantity.low is None or quantity.high is None else f" [{factor * quantity.low:.4g}, {factor * quantity.high:.4g}]"
    return f"{factor * quantity.value:.4g}{ends}"


FIGURES = {
    "token-speed": token_speed, "token-accuracy": token_accuracy, "token-onnx": onnx, "addons": addons, "long-run": long_run,
    "early-exit": early_exit, "edge-survey": edge_survey, "edge-finetune": edge_finetune,
}  # fmt: skip
