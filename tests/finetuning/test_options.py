"""Requests that make no sense are refused with the option's name, before anything is loaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from vis_accel.errors import UsageError
from vis_accel.finetuning.options import FinetuneOptions


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mode": "lorra"}, "There is no --mode named 'lorra'"),
        ({"rank": 4}, "--rank is for adapters; --mode full has none"),
        ({"lora_plus": 16.0, "mode": "head"}, "--lora-plus is for adapters"),
        ({"rank": 0, "mode": "lora"}, "--rank must be from 1"),
        ({"lora_plus": 0.5, "mode": "lora"}, "--lora-plus must be from 1"),
        ({"temperature": 2.0}, "--temperature needs a teacher"),
        ({"distill": "logit"}, "--distill needs a teacher"),
        ({"teacher": "x", "distill": "feature", "temperature": 2.0}, "--temperature softens probabilities"),
        ({"teacher": "x", "distill": "feature", "mode": "head"}, "leaves as they are"),
        ({"layer_decay": 0.7, "mode": "head"}, "--layer-decay does nothing with --mode head"),
        ({"layer_decay": 1.0}, "--layer-decay must lie between 0 and 1"),
        ({"patch_dropout": 1.0}, "--patch-dropout must lie between 0 and 1"),
        ({"validation_share": 0.0}, "--validation-share must lie between 0 and 1"),
        ({"learning_rate": float("nan")}, "--learning-rate must lie"),
        ({"precision": "fp16"}, "--precision is bf16 or no"),
        ({"augment": "some"}, "There is no --augment named 'some'"),
        ({"optimizer": "lion"}, "There is no --optimizer named 'lion'"),
        ({"epochs": 0}, "--epochs must be from 1"),
        ({"patience": 0}, "--patience must be from 1"),
    ],
)
def test_refused(options: Callable[..., FinetuneOptions], changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as caught:
        options(**changes)
    assert words in caught.value.message


def test_what_decides_the_result_is_recorded_and_what_does_not_is_not(options: Callable[..., FinetuneOptions]) -> None:
    recorded = options(threads=2, workers=3).recorded()
    assert recorded["seed"] == 0
    assert not {"threads", "workers", "output", "resume"} & set(recorded)


def test_the_command_describes_itself_and_refuses_without_pytorch() -> None:
    program = (
        "import sys; from vis_accel.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert 'torch' not in sys.modules and 'timm' not in sys.modules"
    )
    run = [sys.executable, "-c", program, "finetune"]
    told = subprocess.run([*run, "--help"], capture_output=True, text=True, timeout=60)
    assert told.returncode == 0
    assert "--layer-decay" in told.stdout
    assert "Assertion" not in told.stderr
    refused = subprocess.run([*run, "--model", "x", "--data", "y", "--rank", "4"], capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "--rank is for adapters" in refused.stderr
    assert "Assertion" not in refused.stderr
