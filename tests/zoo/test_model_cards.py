"""The cards of the bundled models say what their records say, and the models are of the sizes promised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vis_accel.errors import ModelError
from vis_accel.zoo import MODELS, bundled
from vis_accel.zoo.model_card import TEXT, TRAINING, markdown

MEGABYTES = {"cifar10-features": 2.1, "cifar10-dit": 30, "cifar10-unet": 12, "cifar10-vit": 6}  # of weights


@pytest.mark.parametrize("name", MODELS)
def test_the_text_is_what_code_makes_of_the_record(name: str) -> None:
    place = bundled.folder(name)
    assert (place / TEXT).read_text() == markdown(place), "python eval/make_bundle.py cards"


@pytest.mark.parametrize("name", MODELS)
def test_the_record_is_whole_and_the_weights_are_small(name: str) -> None:
    place, card = bundled.folder(name), bundled.describe(name)
    facts = json.loads((place / TRAINING).read_text())
    assert set(facts["sha256"]) == {"train", "calibration", "test"}
    assert len(set(facts["sha256"].values())) == 3
    assert facts["weaknesses"]
    assert all(part["history"][-1]["step"] == part["config"]["steps"] for part in facts["parts"])
    assert card.scores
    weights = [place / path for path in card.weights if "/" in path or path == "model.safetensors"]
    assert sum(path.stat().st_size for path in weights) <= MEGABYTES[name] * 1e6


def test_a_folder_without_a_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text('{"name": "x", "kind": "pipeline"}')
    with pytest.raises(ModelError, match=r"training\.json"):
        markdown(tmp_path)
