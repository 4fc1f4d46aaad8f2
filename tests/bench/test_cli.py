"""The command line: exit codes, what goes to which stream, speed of the help, bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from vis_accel import cli, measuring


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "ROUNDS", 1)
    monkeypatch.setattr(measuring, "PROBE", 4)


def run(*arguments: str) -> int:
    """Exit code of the command line, called as a person calls it."""
    try:
        cli.main(list(arguments))
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_bench_prints_rows_and_writes_the_card(standin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "--sampler", "dpm", "--steps", "2,3", "--samples", "8", "--batch", "4", "--output", "out") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert [line.split("  ")[0] for line in lines if line.startswith(("stock", "dpm"))] == [
        "stock DDIM, 10 steps", "stock DPM++ 2M, 20 steps", "dpm(steps=2)", "dpm(steps=3)",
    ]  # fmt: skip
    assert "timing, interleaved" in err
    assert "timing, interleaved" not in out
    assert {path.name for path in (standin / "out").iterdir()} == {"card.json", "card.md", "card.png", "rows.jsonl", "samples"}


def test_bench_json_on_stdout_is_json_and_nothing_else(standin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "--recipe", "unipc(steps=2)", "--samples", "4", "--format", "json") == 0
    card = json.loads(capsys.readouterr().out)
    assert card["records"][-1]["recipe"] == "unipc(steps=2)"


def test_default_sampler_is_dpm_with_ten_steps() -> None:
    assert cli._recipes(None, None, None, None) == []  # then bench decides, by the kind of the model
    assert [str(recipe) for recipe in cli._recipes(["dpm++"], "5,6", "karras", None)] == [
        "dpmpp(steps=5, schedule='karras')", "dpmpp(steps=6, schedule='karras')",
    ]  # fmt: skip


def test_dry_run_lists_rows_and_writes_nothing(standin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("bench", "--sampler", "heun", "--steps", "4", "--dry-run") == 0
    assert "heun(steps=4): 7 calls" in capsys.readouterr().out
    assert not list(standin.iterdir())


def test_generate_writes_images_named_by_seed_and_equal_to_the_librarys(standin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    from vis_accel import accelerate
    from vis_accel.generation import Job, generate
    from vis_accel.zoo import load

    assert run("generate", "--recipe", "dpm(steps=2)", "--count", "3", "--seed", "7", "--class-labels", "4", "--output", "made") == 0
    assert sorted(path.name for path in (standin / "made").iterdir()) == ["000007.png", "000008.png", "000009.png"]
    pipeline = load("cifar10-dit")
    pipeline.set_progress_bar_config(disable=True)
    with accelerate(pipeline, "dpm(steps=2)"):
        expected = generate(pipeline, Job(seed=7, class_labels=(4,), guidance_scale=2.0), range(3))
    with Image.open(standin / "made" / "000008.png") as image:
        made = torch.tensor(list(image.tobytes()), dtype=torch.uint8).reshape(32, 32, 3).permute(2, 0, 1)
    assert torch.equal(made, expected[1])


def test_reference_of_a_folder_serves_bench(standin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("generate", "--recipe", "ddim(steps=1)", "--count", "130", "--output", "real") == 0
    assert run("reference", "real", "--output", "stats.safetensors") == 0
    measured = ["--sampler", "ddim", "--steps", "2", "--samples", "120", "--reference", "stats.safetensors"]
    assert run("bench", *measured, "--format", "json") == 0
    card = json.loads(capsys.readouterr().out.split("real/all\n")[-1])
    assert card["reference"]["name"].endswith("real/all")
    assert card["reference"]["images"] == 130


BAD = [
    (("bench", "--sampler", "dpn"), 2, "did you mean dpm"),
    (("bench", "--sampler", "dpm", "--steps", "0"), 2, "steps"),
    (("bench", "--sampler", "dpm", "--steps", "x"), 2, "whole numbers"),
    (("bench", "--sampler", "dpm", "--steps", "5000", "--samples", "4"), 2, "1 .. 1000"),
    (("bench", "--sampler", "dpm", "--schedule", "logsmr"), 2, "logsnr"),
    (("bench", "--steps", "5"), 2, "--sampler"),
    (("bench", "--recipe", "dpm(stepz=3)"), 2, "steps"),
    (("bench", "--recipe", "dpm(steps=3) + heun"), 2, "both replace the scheduler"),
    (("bench", "--recipe", "dpm(steps=3"), 2, "dpm(steps=3"),
    (("bench", "--samples", "1"), 2, "at least 2"),
    (("bench", "--batch", "0"), 2, "at least 1"),
    (("bench", "--budget", "soon"), 2, "90s, 5m or 2h"),
    (("bench", "--model", "cifar10-dut"), 2, "cifar10-dit"),
    (("bench", "--model", "cifar10-features"), 2, "no diffusion pipeline"),
    (("bench", "--model", "./nowhere"), (1, 2), "nowhere"),
    (("bench", "--dtype", "float31"), 2, "float32"),
    (("bench", "--device", "quantum"), 2, "--device cpu"),
    (("bench", "--reference", "empty"), 1, "no images"),
    (("bench", "--prompts", "missing.txt"), 2, "missing.txt"),
    (("bench", "--class-labels", "1,two"), 2, "whole numbers"),
    (("reference", "empty", "--output", "s.safetensors"), 1, "no images"),
    (("train", "cifar10-autoencode", "--data", "empty"), 2, "cifar10-autoencoder"),
    (("train", "cifar10-features", "--data", "empty"), 1, "train/CLASS"),
    (("generate", "--recipe", "none of these"), 2, "none"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), BAD, ids=[" ".join(case[0]) for case in BAD])
def test_bad_input_gets_a_sentence_and_an_exit_code(
    standin: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int | tuple[int, ...], words: str
) -> None:
    (standin / "empty").mkdir()
    found = run(*arguments)
    out, err = capsys.readouterr()
    assert found in (code if isinstance(code, tuple) else (code,)), err
    assert words in err
    assert "Traceback" not in err
    assert not out.strip()


def test_an_output_folder_that_cannot_be_one_is_named(standin: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (standin / "file").write_text("I am a file")
    assert run("bench", "--sampler", "dpm", "--steps", "2", "--samples", "4", "--output", "file") == 1
    assert "file" in capsys.readouterr().err
    assert (standin / "file").read_text() == "I am a file"


def test_debug_shows_the_traceback(standin: Path) -> None:
    from vis_accel.errors import UnknownNameError

    with pytest.raises(UnknownNameError):
        cli.main(["--debug", "bench", "--sampler", "dpn"])


def test_list_names_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    from vis_accel import registry

    assert run("list", "--format", "quiet") == 0
    assert capsys.readouterr().out.split() == list(registry.entries())
    assert run("list", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out).keys() == registry.entries().keys()


def test_version_and_help_load_nothing_heavy_and_answer_at_once() -> None:
    code = (
        "import sys, time; start = time.process_time(); from vis_accel.cli import app, main\n"
        "try: main(['bench', '--help'])\nexcept SystemExit: pass\n"
        "heavy = [m for m in ('torch', 'diffusers', 'timm', 'matplotlib', 'numpy') if m in sys.modules]\n"
        "print('HEAVY', heavy, 'CPU', time.process_time() - start)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "HEAVY []" in done.stdout, done.stdout + done.stderr
    spent = float(re.search(r"CPU ([\d.]+)", done.stdout)[1])  # type: ignore[index]
    assert spent < 0.6  # 0.15 s on an idle machine; what is bounded here is the work, not the neighbours
    assert "--sampler" in done.stdout
    assert time.perf_counter() - started < 30
