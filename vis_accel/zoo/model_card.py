"""The card of a bundled model for people, in Markdown, from the facts in its folder alone: card.json and training.json.

training.json holds what the trainings recorded (`parts`, each with its configuration, machine and history), the hashes of the data's
splits, and what is known to be weak. The text is made from these alone, so it cannot say what the record does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vis_accel.errors import ModelError
from vis_accel.strict_json import loads
from vis_accel.zoo.bundled import ModelCard, read_card

__all__ = ["TEXT", "TRAINING", "markdown"]

TEXT, TRAINING = "README.md", "training.json"


def markdown(place: Path) -> str:
    """The card of the model in the folder `place`.

    Raises:
        ModelError: card.json or training.json is missing or broken.
    """
    card = read_card(place)
    try:
        facts: Any = loads((place / TRAINING).read_text(encoding="utf-8"), str(place / TRAINING), ModelError)
    except OSError as error:
        raise ModelError(f"Cannot read {place / TRAINING}: {error}") from error
    size = sum((place / name).stat().st_size for name in card.weights if "/" in name or name == "model.safetensors")
    parts = [f"# {card.name}", f"{card.summary}. {size / 1e6:.1f} MB in half precision, {card.license}.", _scores(card)]
    if (place / "grid.png").exists():
        what = facts.get("grid", "samples at seeds 0 to 99")
        parts += ["## What it makes", f"![{what}](grid.png)", f"{what[0].upper()}{what[1:]}."]
    parts += ["## Data", f"{card.trained_on}.", _splits(facts["sha256"])]
    parts += ["## Training", *(_part(part, place) for part in facts["parts"])]
    parts += ["## Known weaknesses", "\n".join(f"- {line}" for line in facts["weaknesses"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(card: ModelCard) -> str:
    setting = [f"`{card.sampler}`" if card.sampler else "", *(f"{k} {v}" for k, v in card.job.items() if k != "class_labels")]
    rows = "\n".join(f"| {name} | {value:.4g} |" for name, value in card.scores.items())
    pinned = ", ".join(word for word in setting if word)
    lead = f"Pinned setting: {pinned}.\n\n" if pinned else ""
    return f"{lead}| score | value |\n|---|---|\n{rows}"


def _splits(hashes: dict[str, str]) -> str:
    rows = "\n".join(f"| {name} | `{digest}` |" for name, digest in hashes.items())
    return (
        f"The splits, by the sha256 of their pixels and labels; `calibration` was not trained on:\n\n| split | sha256 |\n|---|---|\n{rows}"
    )


def _part(part: dict[str, Any], place: Path) -> str:
    config, machine = part["config"], part["machine"]
    images = config["steps"] * config["batch_size"]
    threads = f"{machine['threads']} thread{'' if machine['threads'] == 1 else 's'}"
    where = f"{machine['processor']}, {machine['accelerator'] or threads}"
    last = ", ".join(f"{k} {v:.4g}" for k, v in part["history"][-1].items() if k not in ("step", "seconds", "lr"))
    text = (
        f"`vis-accel train {part['name']} --data DIR`: {config['steps']:,} steps of {config['batch_size']} ({images:,} images), "
        f"{config['optimizer']}, learning rate {config['learning_rate']:g}, average {config['ema_decay']}, {config['mixed_precision']}, "
        f"seed {config['seed']}; {part['seconds'] / 60:.0f} minutes on {where}. At the end: {last}."
    )
    notes = "".join(f" {note}" for note in part.get("notes", ()))
    curve = f"curve-{part['name']}.png"
    return text + notes + (f"\n\n![loss]({curve})" if (place / curve).exists() else "")
