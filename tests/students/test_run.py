"""`vis-accel distill` from options to a folder: what is written, resumed, refused."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file
from students.conftest import GUIDANCE
from typer.testing import CliRunner

from vis_accel import accelerate, files, load
from vis_accel.cli import app
from vis_accel.errors import NotApplicableError, OutputError, RunError, UnknownNameError, UsageError
from vis_accel.students import DistillOptions, distill, run
from vis_accel.students.teacher import open_teacher
from vis_accel.students.train_consistency import ConsistencyTask
from vis_accel.training import TrainingConfig

Options = Callable[..., DistillOptions]


def images(pipe: Any, guidance: float, steps: int) -> torch.Tensor:
    pipe.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    found: torch.Tensor = pipe([1, 7], guidance_scale=guidance, num_inference_steps=steps, generator=generators, output_type="pt").images
    return found


def test_a_consistency_student_is_a_stock_folder_and_an_addon(options: Options) -> None:
    asked = options(evaluations=1)
    done = distill(asked)
    assert set(done.scores) == {"end_error"}
    assert (done.folder / "grid.png").stat().st_size > 200
    stock = diffusers.DiTPipeline.from_pretrained(done.folder / "pipeline")
    assert type(stock.scheduler) is diffusers.LCMScheduler
    assert stock.scheduler.config.original_inference_steps == 25
    assert stock.labels == {f"class {index}": index for index in range(10)}
    assert images(stock, 1.0, 4).isfinite().all()
    pipe = load(asked.model)
    plain = images(pipe, GUIDANCE, 1)
    with accelerate(pipe, f"distilled(steps=1, weights='{done.folder / 'addon.safetensors'}')"):
        ours = images(pipe, GUIDANCE, 1)
    apart = (ours - images(stock, 1.0, 1)).abs()
    assert apart.mean() < 0.01  # bfloat16 there, 8 bits here
    assert (ours - plain).abs().mean() > 5 * apart.mean()


def test_saved_and_loaded_it_is_the_same_to_the_bit(options: Options) -> None:
    done = distill(options())
    pipe, addon = load(str(options().model)), done.folder / "addon.safetensors"
    made = []
    for _ in range(2):
        with accelerate(pipe, f"distilled(steps=2, weights='{addon}')"):
            made.append(images(pipe, GUIDANCE, 2))
    assert torch.equal(*made)
    again = load(str(done.folder / "pipeline")).transformer.state_dict()
    average = {name[4:]: value for name, value in load_file(done.folder / "checkpoint.safetensors").items() if name.startswith("ema.")}
    assert all(torch.equal(value.to(torch.bfloat16).float(), again[name]) for name, value in average.items() if value.is_floating_point())


@pytest.mark.parametrize(("kind", "method", "recipe"), [
    ("dit", "guidance", "guidance-distilled(weights='{}')"),
    ("dit", "progressive", "distilled(steps=2, weights='{}')"),
    ("epsilon", "progressive", "distilled(steps=2, weights='{}')"),
    ("dit", "cfg-aware", "distilled(steps=2, weights='{}')"),
    ("dit", "segments", "distilled(steps=2, weights='{}')"),
    ("epsilon", "segments", "distilled(steps=2, weights='{}')"),
])  # fmt: skip
def test_other_methods_end_in_a_folder_that_does_what_the_addon_does(kind: str, method: str, recipe: str, options: Options) -> None:
    halving = {"student_steps": 2, "teacher_steps": 4} if method in ("progressive", "cfg-aware") else {}
    if method == "segments":
        halving = {"student_steps": 2, "sampler": "ddim(steps=4, schedule='trailing')", "ancestral": False}
    asked = options(kind, method=method, steps=2, **halving)
    done = distill(asked)
    stock = diffusers.DiTPipeline.from_pretrained(done.folder / "pipeline")
    if method != "guidance":
        assert stock.scheduler.config.prediction_type == ("epsilon" if (kind, method) == ("epsilon", "segments") else "v_prediction")
        assert stock.scheduler.config.timestep_spacing == "trailing"
    if kind == "epsilon" and method == "progressive":
        assert (done.folder / "stage-1" / "pipeline").is_dir()
    pipe = load(asked.model)
    with accelerate(pipe, recipe.format(done.folder / "addon.safetensors")):
        ours = images(pipe, GUIDANCE, 2)
    theirs = images(stock, GUIDANCE if method == "cfg-aware" else 1.0, 2)
    assert (ours - theirs).abs().mean() < 0.02


def test_an_unconditional_pipeline_in_pixels(options: Options) -> None:
    asked = options("ddpm", solver="heun", knots=10, sampler="dpm(steps=2, schedule='trailing')", batch=4, steps=2)
    done = distill(asked)
    stock = diffusers.DDPMPipeline.from_pretrained(done.folder / "pipeline")
    assert stock(batch_size=1, num_inference_steps=2, output_type="np").images.shape == (1, 8, 8, 3)
    pipe = load(asked.model)
    with accelerate(pipe, f"distilled(steps=2, weights='{done.folder / 'addon.safetensors'}')"):
        pipe.set_progress_bar_config(disable=True)
        assert pipe(batch_size=1, output_type="np").images.shape == (1, 8, 8, 3)
    with pytest.raises(UsageError, match="no guidance to distil"):
        distill(options("ddpm", method="guidance", output=asked.output / "g"))


def test_a_student_of_segments_in_pixels(options: Options) -> None:
    plain: dict[str, Any] = {"method": "segments", "student_steps": 2, "batch": 8, "steps": 2, "evaluations": 1}
    asked = options("ddpm", sampler="ddim(steps=4, schedule='trailing')", **plain)
    with pytest.raises(UsageError, match="clips images"):
        distill(replace(asked, ancestral=False))
    done = distill(asked)
    assert set(done.scores) == {"segment_error"}
    assert set(load_file(done.folder / "pool.safetensors")) == {"ends", "labels", "starts", "places", "states"}
    stock, pipe = diffusers.DDPMPipeline.from_pretrained(done.folder / "pipeline"), load(asked.model)
    assert type(stock.scheduler).__name__ == "DDPMScheduler"
    recipe, seen = f"distilled(steps=2, weights='{done.folder / 'addon.safetensors'}')", []
    for one in (stock, pipe):
        one.set_progress_bar_config(disable=True)
        one.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with nullcontext() if one is stock else accelerate(one, recipe):
            one(batch_size=16, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np")
    assert torch.equal(seen[0], seen[2])
    above, below = stock.scheduler.alphas_cumprod[[999, 499]].tolist()  # both have noise of their own, of DDPM's deviation
    deviation = math.sqrt(2 * (1 - below) / (1 - above) * (1 - above / below))
    assert float((seen[1] - seen[3]).std()) == pytest.approx(deviation, rel=0.05)
    with pytest.raises(UsageError, match="must be 2, which the student"):
        accelerate(pipe, recipe.replace("steps=2", "steps=4"))


def often(config: Callable[[DistillOptions], TrainingConfig]) -> Callable[[DistillOptions], TrainingConfig]:
    """With a checkpoint after every step."""
    return lambda options: replace(config(options), checkpoint_seconds=0.0)


class Killed(Exception):
    pass


def test_killed_and_resumed_ends_with_the_same_bits(options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target network and the masks too."""
    plain = ConsistencyTask.batch
    whole = distill(replace(options(steps=6, dropout=0.3), output=tmp_path / "whole"))
    taken: list[int] = []

    def dies(self: ConsistencyTask, indices: torch.Tensor, generator: torch.Generator) -> Any:
        if len(taken) == 3:
            raise Killed
        taken.append(0)
        return plain(self, indices, generator)

    parts = replace(options(steps=6, dropout=0.3), output=tmp_path / "parts")
    with monkeypatch.context() as patch:
        patch.setattr(run, "_config", often(run._config))
        patch.setattr(ConsistencyTask, "batch", dies)
        with pytest.raises(Killed):
            distill(parts)
    assert json.loads((parts.output / "options.json").read_text())["dropout"] == 0.3
    resumed = distill(replace(parts, resume=True))
    ours, theirs = (load_file(folder / "checkpoint.safetensors") for folder in (whole.folder, resumed.folder))
    assert any(name.startswith("target.") for name in ours)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    with pytest.raises(UsageError, match="nothing to resume"):
        distill(replace(parts, resume=True))


def test_a_run_goes_on_under_its_own_options_only(options: Options) -> None:
    distill(options())
    with pytest.raises(UsageError, match="exists already"):
        distill(options())
    (options().output / "history.json").unlink()
    with pytest.raises(UsageError, match=r"knots: None there, 20 here; .*learning_rate: 0\.001 there, 0\.01 here"):
        distill(options(knots=20, learning_rate=0.01, resume=True))
    with pytest.raises(UsageError, match=r"guidance: 3\.0 there, 4\.0 here"):
        distill(options(guidance=4.0, resume=True))


def test_a_loss_that_is_not_finite_stops_and_says_where(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, steps = ConsistencyTask.loss, [0]

    def poisoned(self: ConsistencyTask, model: Any, *batch: Any) -> torch.Tensor:
        steps[0] += 1
        return plain(self, model, *batch) * (float("nan") if steps[0] > 3 else 1.0)

    monkeypatch.setattr(ConsistencyTask, "loss", poisoned)
    monkeypatch.setattr(run, "_config", often(run._config))
    with pytest.raises(RunError, match=r"is nan at step \d"):
        distill(options(steps=6, evaluations=3))
    kept = load_file(options().output / "checkpoint.safetensors")
    assert all(value.isfinite().all() for value in kept.values())


def test_no_space_for_a_checkpoint_is_said_and_leaves_what_was_there(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = files._write_through

    def full(path: Path, data: bytes) -> None:
        if "checkpoint" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        plain(path, data)

    monkeypatch.setattr(files, "_write_through", full)
    with pytest.raises(OutputError, match=r"checkpoint\.safetensors: No space left on device") as caught:
        distill(options())
    assert caught.value.hint is not None
    assert "free some space" in caught.value.hint
    assert not list(options().output.glob(".*tmp"))


def test_teachers_that_do_not_fit_are_refused(options: Options, folders: dict[str, Path], tmp_path: Path) -> None:
    flow = load(str(folders["dit"]))
    flow.scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    with pytest.raises(NotApplicableError, match="is a flow model"):
        open_teacher(flow, GUIDANCE)
    full = load(str(folders["dit"]))
    full.scheduler = diffusers.DDIMScheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    with pytest.raises(NotApplicableError, match="zero terminal SNR"):
        open_teacher(full, GUIDANCE)
    with pytest.raises(UsageError, match="Which guidance"):
        distill(options(guidance=None))
    with pytest.raises(UsageError, match="nothing to guide"):
        distill(options("ddpm", guidance=3.0, output=tmp_path / "b"))
    with pytest.raises(UsageError, match="no diffusion pipeline"):
        distill(options(model="cifar10-vit", output=tmp_path / "c"))


def test_impossible_requests_are_refused_before_anything_is_trained(options: Options, folders: dict[str, Path], tmp_path: Path) -> None:
    count = iter(range(100))

    def refused(error: type[Exception], match: str, **changes: Any) -> None:
        with pytest.raises(error, match=match):
            distill(options(**{"output": tmp_path / str(next(count)), **changes}))

    refused(UsageError, "Halving 6 steps", method="progressive", student_steps=4, teacher_steps=6)
    refused(UsageError, "Halving 4 steps", method="progressive", student_steps=4, teacher_steps=4)
    refused(UsageError, "must divide its network's 1000 times; got 30", knots=30)
    refused(UsageError, "one sampler with its steps", sampler="distilled")
    refused(UsageError, "one sampler with its steps", sampler="ddim + compile")
    refused(UsageError, "not from pure noise", sampler="ddim(steps=2, schedule='leading')")
    refused(UsageError, "outside the student's range", method="guidance", low=4.0)
    refused(UsageError, "cannot stop at each of the 6 noise levels", method="segments")
    refused(UsageError, "cannot say in one step", method="segments", student_steps=1, model=str(folders["epsilon"]))
    refused(UsageError, "--batch 1000 is more than the 96 examples", batch=1000)
    for changes, match in (
        ({"method": "progresive"}, "progresive"), ({"solver": "euler"}, "euler"), ({"precision": "fp8"}, "fp8"),
    ):  # fmt: skip
        with pytest.raises(UnknownNameError, match=match):
            options(**changes)
    for changes, match in (
        ({"steps": 0}, "--steps must be 1"), ({"learning_rate": float("nan")}, "--learning-rate"), ({"samples": 1}, "--samples"),
        ({"method": "guidance", "knots": 20}, "--knots belongs to consistency"), ({"student_steps": 2}, "belongs to progressive"),
        ({"ancestral": True}, "belongs to segments"), ({"method": "segments", "data": tmp_path}, "takes no --data"),
        ({"method": "guidance", "low": 8.0, "high": 2.0}, "--low must be below"), ({"guidance": 0.5}, "--guidance must be 1"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=match):
            options(**changes)


def test_paths_are_sampled_once(options: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    distill(options())
    first = (options().output / "pool.safetensors").stat().st_mtime_ns
    for name in ("history.json", "checkpoint.safetensors"):
        (options().output / name).unlink()
    distill(options(resume=True))
    assert (options().output / "pool.safetensors").stat().st_mtime_ns == first


def test_the_command_line_distils(folders: dict[str, Path], tmp_path: Path) -> None:
    asked = [
        "distill",
        "--model",
        str(folders["dit"]),
        "--output",
        str(tmp_path / "o"),
        "--guidance",
        "3",
        "--samples",
        "48",
        "--steps",
        "2",
    ]
    asked += ["--sampler", "ddim(steps=2, schedule='trailing')", "--batch", "8", "--precision", "no", "--knots", "20", "--evaluations", "1"]
    done = CliRunner().invoke(app, asked)
    assert done.exit_code == 0, done.output
    assert "end_error=" in done.stdout
    assert done.stdout.strip().endswith(str(tmp_path / "o" / "pipeline"))
    assert "stage" not in done.output
