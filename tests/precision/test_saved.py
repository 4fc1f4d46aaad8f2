"""What was rounded once is kept: to the bit, for these weights and no others, and broken files are said to be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from precision.targets import answer, build
from safetensors.torch import load_file, save_file
from vit_models.families import images, tiny

from vis_accel import ConflictError, DataError, NotApplicableError, UsageError, load
from vis_accel.apply import accelerate
from vis_accel.generation import Job
from vis_accel.precision import kernels, saved
from vis_accel.quantizing import quantize
from vis_accel.zoo import quantized

pytestmark = pytest.mark.skipif(kernels.supported() is not None, reason=str(kernels.supported()))
JOB = Job(steps=3, seed=3)
CASES = {
    "dit": ("int8(probe=False, images=2)", Job(steps=3, class_labels=(1, 2))),
    "unet": ("q-diffusion(weights=4, activations=8, images=4, iterations=20)", JOB),
    "unet in integers": ("q-diffusion(images=2)", JOB),
    "vit": ("int8(probe=False)", None),
}


def put(target: Any, recipe: str, job: Job | None) -> Any:
    return accelerate(target, recipe, calibration=images() if job is None else job)


@pytest.mark.parametrize("case", CASES)
def test_a_calibration_is_kept_and_read_to_the_bit(case: str, own_folder: Path) -> None:
    recipe, job = CASES[case]
    target, said = build(case.split()[0]), list[str]()
    for _ in range(2):
        with put(target, recipe, job) as handle:
            said.append(next(iter(handle.report().values())))
            found = answer(target)
        if len(said) == 1:
            first = found
            (path,) = (own_folder / "calibrations").iterdir()
    assert torch.equal(found, first)
    assert "read from" not in said[0]
    assert said[1] == f"{said[0]}; calibration: read from {path}"


def test_another_run_another_network_and_fresh_are_calibrated_anew(own_folder: Path) -> None:
    folder = own_folder / "calibrations"
    recipe, job = CASES["dit"]
    counts = []
    for text, changed, given in (
        (recipe, False, job),
        (recipe, False, Job(steps=3, class_labels=(3, 4))),
        (f"euler(steps=3) + {recipe}", False, job),
        (recipe, True, job),
        (recipe.replace(")", ", fresh=True)"), False, job),
    ):
        target = build("dit")
        if changed:
            target.transformer.transformer_blocks[0].ff.net[2].weight.data[0] += 1
        with put(target, text, given) as handle:
            assert "read from" not in str(handle.report())
        counts.append(len(list(folder.iterdir())))
    assert counts == [1, 2, 3, 4, 5]


def test_a_broken_calibration_is_made_again(own_folder: Path) -> None:
    recipe, job = CASES["vit"]
    model = build("vit")
    with put(model, recipe, job):
        wanted = answer(model)
    (path,) = (own_folder / "calibrations").iterdir()
    path.write_bytes(b"broken")
    with put(model, recipe, job) as handle:
        assert "read from" not in str(handle.report())
        assert torch.equal(answer(model), wanted)
    assert saved.read(path).facts.method == "int8(probe=False)"


@pytest.fixture(scope="module")
def unet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder."""
    place = tmp_path_factory.mktemp("float") / "unet"
    build("unet").save_pretrained(place)
    return place


RECIPE = "dpm(steps=3) + q-diffusion(weights=4, images=4, iterations=20)"


@pytest.fixture(scope="module")
def folder(unet_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, quantized."""
    place = tmp_path_factory.mktemp("rounded") / "w4"
    quantize(str(unet_folder), RECIPE, place)
    return place


def test_a_folder_is_loaded_to_the_bit_whole_and_from_anywhere(unet_folder: Path, folder: Path, tmp_path: Path) -> None:
    target = load(str(unet_folder))
    target.set_progress_bar_config(disable=True)
    with accelerate(target, RECIPE):
        wanted = answer(target)
    elsewhere = folder.rename(tmp_path / "moved")
    try:
        found = load(str(elsewhere))
        found.set_progress_bar_config(disable=True)
        assert torch.equal(answer(found), wanted)
        assert quantized.opened_as(elsewhere)[0] == str(elsewhere / "model")
    finally:
        elsewhere.rename(folder)


def test_it_is_measured_against_its_float_model(folder: Path, unet_folder: Path) -> None:
    from vis_accel.benchmark import Settings, bench

    card = bench(str(folder), settings=Settings(samples=2, batch=2, timing_batch=2, budget=60), job=Job(steps=3))
    assert [row.recipe.split(" + ")[0] for row in card.rows][-1] == "dpm(steps=3)"
    assert any("read from" in note for note in card.records[-1].notes)


def test_broken_folders_say_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    import shutil

    def copied(name: str) -> Path:
        return Path(shutil.copytree(folder, tmp_path / name))

    newer = copied("newer")
    index = newer / "quantized.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"format": 9}))
    with pytest.raises(DataError, match="format 9; this version of vis-accel reads 1"):
        load(str(newer))
    lacking = copied("lacking")
    tensors = load_file(lacking / saved.FILE)
    header = saved.dumps(saved.to_form(saved.read(lacking / saved.FILE).facts, "it"))
    name = next(name for name in tensors if name.endswith("scale_of"))
    save_file({key: value for key, value in tensors.items() if key != name}, lacking / saved.FILE, metadata={"vis_accel": header})
    with pytest.raises(DataError, match=r"lacks scale_of of the layer"):
        load(str(lacking))
    foreign = copied("foreign")
    (weights,) = (foreign / "model" / "unet").glob("*.safetensors")
    save_file({key: value + 1 for key, value in load_file(weights).items()}, weights, metadata={"format": "pt"})
    with pytest.raises(NotApplicableError, match="other weights"):
        load(str(foreign))
    (copied("empty") / saved.FILE).unlink()
    with pytest.raises(DataError, match="There is no"):
        load(str(tmp_path / "empty"))


def test_refusals(folder: Path, unet_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="quantized already"):
        quantize(str(folder), RECIPE, tmp_path / "twice")
    with pytest.raises(UsageError, match="rounds nothing"):
        quantize(str(unet_folder), "dpm(steps=3)", tmp_path / "nothing")
    with pytest.raises(UsageError, match="nothing to calibrate"):
        quantize(str(unet_folder), "int8(activations='dynamic')", tmp_path / "dynamic")
    with pytest.raises(UsageError, match="images it makes"):
        quantize(str(unet_folder), RECIPE, tmp_path / "data", calibration=tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="not of this command"):
        quantize(str(unet_folder), RECIPE, tmp_path)
    with pytest.raises(NotApplicableError, match="simulated rounding, and integer kernels"):
        accelerate(build("unet"), f"dpm(steps=3) + q-diffusion(saved={str(folder)!r})")
    with pytest.raises(DataError, match="There is no"):
        accelerate(tiny("plain"), "int8(saved='nowhere')")
