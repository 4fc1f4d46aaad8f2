"""Reflow from options to a folder: pairs, the straight line between them, scores, and a student of any number of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from students.conftest import GUIDANCE
from students.test_run import Options, images

from vis_accel import accelerate, load
from vis_accel.distillation import space
from vis_accel.errors import UsageError
from vis_accel.eval.counters import CallCounter
from vis_accel.students import DistillOptions, distill
from vis_accel.students.pool import sampled
from vis_accel.students.teacher import open_teacher
from vis_accel.students.train_reflow import ReflowTask


@pytest.fixture(params=["dit", "epsilon", "ddpm"])
def task(request: pytest.FixtureRequest, folders: dict[str, Path], options: Callable[..., DistillOptions]) -> ReflowTask:
    teacher = open_teacher(load(str(folders[request.param])), None if request.param == "ddpm" else GUIDANCE)
    pool = sampled(teacher, 32, sampler="ddim(steps=4, schedule='trailing')")
    return ReflowTask(options(request.param, method="reflow", dropout=0.5), teacher, pool, pool)


def test_a_student_at_initialisation_is_its_teacher(task: ReflowTask) -> None:
    x, labels = torch.randn(4, *task.teacher.shape), torch.arange(4)
    times = torch.tensor([0, 300, 700, 999])
    for module in task.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    task.model.train().requires_grad_(False)  # of weights to be trained PyTorch takes another convolution, in other rounding
    with torch.no_grad():
        ours = task.teacher.output(task.model, x, task.table[times], times, labels)
        theirs = task.teacher.output(task.teacher.network, x, task.table[times], times, labels)
    assert torch.equal(ours, theirs)
    assert task.noise.prediction == task.teacher.noise.prediction


def test_a_batch_lies_on_the_lines_of_its_pairs(task: ReflowTask) -> None:
    indices = torch.arange(32)
    x, times, labels, wanted, seed = task.batch(indices, torch.Generator().manual_seed(0))
    starts, ends = task.pool.starts, task.pool.ends
    sigma, highest = task.table[times], task.teacher.noise.sigma_max
    assert starts is not None
    line = ends + space.along(sigma / highest, ends) * (starts - ends)
    assert torch.allclose(x, line, rtol=1e-4, atol=1e-4)
    noise = (starts - ends) / highest
    assert torch.allclose(wanted, noise - ends, atol=1e-5)
    assert torch.equal(labels, task.pool.labels[indices])
    shares = torch.cat([task.batch(indices, torch.Generator().manual_seed(k))[1] for k in range(60)])
    s = task.table[shares] / (1 + task.table[shares])
    assert float(s.mean()) == pytest.approx(0.5, abs=0.03)  # uniform, not in the network's times
    assert float(s.var()) == pytest.approx(1 / 12, abs=0.01)
    task.model.eval()
    with torch.no_grad():
        image = task.taught.denoise(task.model, x, sigma, times, labels)
        own = (x - image) / space.along(sigma, x) - image  # the network's own noise and image
        apart = task.loss(task.model, x, times, labels, wanted, seed)
        assert apart > 1e-2
        assert task.loss(task.model, x, times, labels, own, seed) < 1e-6 * apart


def test_equal_seeds_are_equal_masks(task: ReflowTask) -> None:
    batch = task.batch(torch.arange(8), torch.Generator().manual_seed(0))
    task.model.train()
    if not any(isinstance(module, torch.nn.Dropout) and module.p for module in task.model.modules()):
        pytest.skip("no dropout in this network")
    with torch.no_grad():
        losses = [float(task.loss(task.model, *batch[:-1], torch.tensor(seed))) for seed in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_curvature_is_that_of_the_samplers_own_path(task: ReflowTask) -> None:
    """Eight steps; a network that always says the path's end is straight."""
    starts, labels = task.pool.starts, task.pool.labels
    assert starts is not None
    with torch.no_grad():
        found = task.curvature(task.model.eval(), starts, labels)
    assert found.shape == (32,)
    assert (found > 0).all()

    def straight(x: Any, *args: Any, **kwargs: Any) -> Any:
        time = int(kwargs.get("timestep", args[0] if args else 0)[0])
        sigma = task.table[time].expand(len(x))
        data = x / space.along(space.alpha(sigma), x)
        return (space.output_for(task.pool.ends, data, sigma, task.noise.prediction),)

    assert float(task.curvature(straight, starts, labels).max()) < 1e-6 * float(found.mean())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["dit", "epsilon"])
def test_it_ends_in_a_stock_folder_that_does_what_the_addon_does(kind: str, options: Options) -> None:
    asked = options(kind, method="reflow", steps=2, student_steps=2, evaluations=1)
    done = distill(asked)
    assert set(done.scores) == {"end_error", "curvature"}
    stock, pipe = diffusers.DiTPipeline.from_pretrained(done.folder / "pipeline"), load(asked.model)
    assert type(stock.scheduler) is diffusers.DDIMScheduler
    assert stock.scheduler.config.prediction_type == ("epsilon" if kind == "epsilon" else "v_prediction")
    for steps in (1, 2, 5):
        recipe = f"distilled(steps={steps}, weights='{done.folder / 'addon.safetensors'}')"
        with accelerate(pipe, recipe), CallCounter(pipe.transformer) as counter:
            ours = images(pipe, GUIDANCE, steps)
        assert (counter.calls, counter.rows) == (steps, 2 * steps)
        assert (ours - images(stock, 1.0, steps)).abs().mean() < 0.02
    with accelerate(stock, "dpm(steps=3)"):
        assert images(stock, 1.0, 3).isfinite().all()
    with pytest.raises(UsageError, match=r"fresh=0\.5.*belongs to consistency students"):
        accelerate(pipe, recipe.replace("steps=5", "steps=5, fresh=0.5"))
    with pytest.raises(UsageError, match="guidance_scale=2"), accelerate(pipe, recipe):
        images(pipe, 2.0, 5)


def test_in_pixels_images_are_not_clipped_on_the_way(options: Options) -> None:
    asked = options("ddpm", method="reflow", batch=8, steps=2)
    done = distill(asked)
    stock, pipe = diffusers.DDPMPipeline.from_pretrained(done.folder / "pipeline"), load(asked.model)
    made = []
    for one in (stock, pipe):
        one.set_progress_bar_config(disable=True)
        recipe = f"distilled(steps=3, weights='{done.folder / 'addon.safetensors'}')"
        handle = None if one is stock else accelerate(one, recipe)
        made.append(one(batch_size=4, num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="np").images)
        if handle is not None:
            assert one.scheduler.noise.clip is None
            handle.remove()
    assert abs(made[0] - made[1]).mean() < 0.02


def test_data_and_options_of_others_are_refused(options: Options, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="reflow learns the teacher's own paths"):
        options(method="reflow", data=tmp_path)
    for changes, match in (({"knots": 20}, "--knots belongs"), ({"teacher_steps": 8}, "--teacher-steps belongs"), ({"rank": 4}, "--rank")):
        with pytest.raises(UsageError, match=match):
            options(method="reflow", **changes)
    assert replace(options(method="reflow"), student_steps=2).student_steps == 2
