"""What a student is trained on: equal to its teacher at first, the same masks for both passes, the solvers' own steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from students.conftest import GUIDANCE
from torch import nn

from vis_accel import load
from vis_accel.distillation import space
from vis_accel.samplers import create, sample
from vis_accel.students import DistillOptions
from vis_accel.students.pool import Pool, again, sampled
from vis_accel.students.scaled import ScaledNetwork, biases
from vis_accel.students.teacher import Teacher, open_teacher
from vis_accel.students.train_consistency import ConsistencyTask
from vis_accel.students.train_guidance import GuidanceTask
from vis_accel.students.train_progressive import ProgressiveTask, Stage, stages
from vis_accel.students.train_segments import SegmentsTask, stops

Options = Callable[..., DistillOptions]


@pytest.fixture
def teacher(folders: dict[str, Path]) -> Teacher:
    return open_teacher(load(str(folders["dit"])), GUIDANCE)


@pytest.fixture
def pool(teacher: Teacher) -> Pool:
    return sampled(teacher, 64, sampler="ddim(steps=2, schedule='trailing')", place=25)


def points(teacher: Teacher, count: int, place: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, *teacher.shape, generator=generator)
    return x, torch.full((count,), place), torch.arange(count) % teacher.classes


def denoiser(teacher: Teacher, labels: torch.Tensor) -> Any:
    def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
        rows = torch.full((len(x),), sigma)
        return teacher.guided(x, rows, torch.full((len(x),), teacher.noise.time_at(sigma)), labels)

    return denoise


def test_a_teacher_guides_as_its_pipeline_does(teacher: Teacher) -> None:
    """One step of the pipeline's own sampler, DDIM with one call, is D at pure noise."""
    pipe, seen = teacher.pipeline, []
    pipe.vae.decode = lambda latents: seen.append(latents) or type("O", (), {"sample": torch.zeros(2, 3, 8, 8)})
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    pipe([1, 7], guidance_scale=GUIDANCE, num_inference_steps=1, generator=generators, output_type="pt")
    noise = torch.stack([torch.randn(teacher.shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)])
    sigma = teacher.noise.sigma_max
    x = noise / teacher.noise.alpha(sigma)
    ours = teacher.guided(x, torch.full((2,), sigma), torch.full((2,), 999), torch.tensor([1, 7]))
    unguided = teacher.guided(x, torch.full((2,), sigma), torch.full((2,), 999), torch.tensor([1, 7]), 1.0)
    assert torch.allclose(seen[0] * pipe.vae.config.scaling_factor, ours, atol=1e-4)
    assert not torch.allclose(ours, unguided, atol=1e-2)


@pytest.mark.parametrize("method", ["consistency", "guidance", "progressive", "segments"])
def test_a_student_at_initialisation_is_its_teacher(method: str, options: Options, teacher: Teacher, pool: Pool) -> None:
    asked = options(method=method)
    task: Any
    if method == "consistency":
        task = ConsistencyTask(asked, teacher, pool, pool)
    elif method == "guidance":
        task = GuidanceTask(asked, teacher, pool, pool)
    elif method == "segments":
        task = of_segments(options, teacher, ancestral=True)
    else:
        task = ProgressiveTask(asked, teacher, pool, pool, teacher=teacher, stage=Stage(4, True))
    x, places, labels = points(teacher, 4, 0)
    sigma, times = teacher.sigmas(places + 400), places + 400
    extra = {"scale": torch.full((4,), 5.0)} if method == "guidance" else {}
    task.model.train()  # no dropout of labels either
    with torch.no_grad():
        ours = teacher.output(lambda inner, **rest: task.model(inner, **extra, **rest), x, sigma, times, labels)
        theirs = teacher.output(teacher.network, x, sigma, times, labels)
    assert torch.equal(ours, theirs)
    tables = [name for name, value in task.model.named_parameters() if "embedding_table" in name and value.requires_grad]
    assert not tables


def test_online_and_target_pass_see_the_same_mask(options: Options, teacher: Teacher, pool: Pool) -> None:
    task = ConsistencyTask(options(dropout=0.5), teacher, pool, pool)
    assert any(isinstance(module, nn.Dropout) and module.p == 0.5 for module in task.model.modules())
    assert all(module.p == 0 for module in teacher.network.modules() if isinstance(module, nn.Dropout))
    x, places, labels = points(teacher, 4, 20)
    task.model.train()
    with torch.no_grad():
        passes = []
        for network, seed in ((task.target, 1), (task.model, 1), (task.model, 2)):
            task.mask(torch.tensor(seed))
            passes.append(task.function(network, x, places, labels))
    assert torch.equal(passes[0], passes[1])
    assert not torch.allclose(passes[0], passes[2], atol=1e-3)


@pytest.mark.parametrize(("solver", "sampler"), [("ddim", "ddim"), ("heun", "heun")])
def test_the_teachers_step_is_the_samplers(solver: str, sampler: str, options: Options, teacher: Teacher, pool: Pool) -> None:
    task = ConsistencyTask(options(solver=solver), teacher, pool, pool)
    x, places, labels = points(teacher, 3, 10)
    x = x * 3
    ours = task.lower(x, places, labels)
    theirs = sample(denoiser(teacher, labels), create(sampler), x, (float(task.sigmas[10]), float(task.sigmas[9])))
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_a_batch_is_known_paths_and_targets_of_the_target_network(options: Options, teacher: Teacher, pool: Pool) -> None:
    task = ConsistencyTask(options(ends=0.25), teacher, pool, pool)
    indices = torch.arange(16)
    x, places, labels, wanted, _ = task.batch(indices, torch.Generator().manual_seed(0))
    assert torch.equal(wanted[:4], pool.ends[:4])
    assert torch.equal(x[:4], pool.starts[:4])  # type: ignore[index]
    assert places[:4].tolist() == [25] * 4
    rest = slice(4, None)
    below = task.lower(x[rest], places[rest], labels[rest])
    assert torch.allclose(wanted[rest], task.function(task.target, below, places[rest] - 1, labels[rest]), atol=1e-5)
    assert set(places.tolist()) <= set(range(1, 26))
    last = places[rest] == 1  # one knot above the last: the target is the point reached itself
    many = task.batch(torch.arange(16).repeat(16), torch.Generator().manual_seed(1))
    lowest = many[1] == 1
    assert lowest.any()
    reached = task.lower(many[0][lowest], many[1][lowest], many[2][lowest])
    assert torch.allclose(many[3][lowest], reached, atol=1e-6)
    assert last.shape == (12,)
    assert task.loss(task.model, x, places, labels, wanted, torch.tensor(0)) > 0


def test_the_target_network_follows_and_is_kept_in_the_checkpoint(options: Options, teacher: Teacher, pool: Pool) -> None:
    task = ConsistencyTask(options(target_decay=0.9), teacher, pool, pool)
    ours, theirs = next(task.target.parameters()), next(task.model.parameters())
    before = ours.clone()
    with torch.no_grad():
        theirs += 1
    task.end_step(0)
    assert torch.allclose(ours, before + 0.1)
    assert task.companions == {"target": task.target}


def test_paths_end_where_the_solver_takes_their_starts(teacher: Teacher, pool: Pool) -> None:
    assert pool.starts is not None
    knots = create("ddim", steps=2, schedule="trailing").knots(None, teacher.noise)
    theirs = sample(denoiser(teacher, pool.labels[:6]), create("ddim"), pool.starts[:6], knots)
    assert torch.allclose(pool.ends[:6], theirs, rtol=0.05, atol=3.0)  # made in bfloat16, with ends as large as 60
    assert (pool.ends[:6] - theirs).norm() < 0.02 * theirs.norm()
    sigmas = torch.tensor([0.01, 0.5, 2.0, 8.0, teacher.noise.sigma_max])
    more = again(teacher, pool, sigmas, sampler="ddim(steps=2, schedule='trailing')")
    assert set(more.places.tolist()) == {1, 2, 3}  # type: ignore[union-attr]
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    both = pool.joined(more)
    assert len(both) == 128
    for place in (1, 2, 3):
        rows = more.places == place
        noise = more.starts[rows] - pool.ends[order][rows]  # type: ignore[index]
        assert noise.std() == pytest.approx(float(sigmas[place]), rel=0.1)


def test_a_progressive_target_is_two_steps_of_the_sampler(options: Options, teacher: Teacher, pool: Pool) -> None:
    task = ProgressiveTask(options(method="progressive"), teacher, pool, pool, teacher=teacher, stage=Stage(4, True))
    x, places, labels = points(teacher, 3, 2)
    image = task.target(x, places, labels, None)
    knots = tuple(float(task.sigmas[place]) for place in (2, 3, 4))
    reached = sample(denoiser(teacher, labels), create("ddim"), x, knots)
    assert torch.allclose(image + knots[2] / knots[0] * (x - image), reached, atol=1e-4)
    last = task.target(x, places + 4, labels, None)
    assert torch.allclose(last, sample(denoiser(teacher, labels), create("ddim"), x, (*map(float, task.sigmas[6:8]), 0.0)), atol=1e-4)


def of_segments(options: Options, teacher: Teacher, ancestral: bool) -> SegmentsTask:
    asked = options(method="segments", ancestral=ancestral)
    pool = sampled(teacher, 32, sampler="ddim(steps=12, schedule='trailing')", through=stops(asked, teacher))
    return SegmentsTask(asked, teacher, pool, pool)


def test_states_of_a_path_are_what_its_solver_passes(options: Options, teacher: Teacher) -> None:
    task = of_segments(options, teacher, ancestral=False)
    pool, levels = task.pool, stops(task.options, teacher)
    assert levels == tuple(task.sigmas[1:-1].tolist())
    assert pool.states is not None
    assert pool.states.shape == (32, 3, *teacher.shape)
    knots = create("ddim", steps=12, schedule="trailing").knots(None, teacher.noise)
    for place, level in enumerate(levels):
        ends = sample(denoiser(teacher, pool.labels), create("ddim"), pool.states[:, place].float(), (level, *knots[3 * place + 4 :]))
        assert (ends - pool.ends).norm() < 0.03 * pool.ends.norm()  # bfloat16 there
    assert stops(options(), teacher) == ()


@pytest.mark.parametrize("ancestral", [False, True])
def test_the_target_of_a_segment_lands_on_its_path(ancestral: bool, options: Options, teacher: Teacher) -> None:
    task = of_segments(options, teacher, ancestral)
    indices = torch.arange(16).repeat(4)
    x, places, labels, wanted, seed = task.batch(indices, torch.Generator().manual_seed(0))
    levels = (*stops(task.options, teacher), 0.0)
    for row, place in enumerate(places.tolist()):
        s, t = float(task.sigmas[place]), float(task.sigmas[place + 1])
        wanted_level = t**2 / s if ancestral else t
        landing = min(range(len(levels)), key=lambda at: abs(levels[at] - wanted_level))
        assert levels[landing] == pytest.approx(wanted_level, rel=1e-6, abs=1e-9)
        states = (*task.pool.states[indices[row]].float(), task.pool.ends[indices[row]])  # type: ignore[index]
        if place > 0:
            assert torch.equal(x[row], states[levels.index(s)])
        step = space.ddim_step(x[row, None], wanted[row, None], *(torch.tensor([level]) for level in (s, levels[landing])))
        assert torch.allclose(step[0], states[landing], atol=1e-3)
    assert sorted(set(places.tolist())) == [0, 1, 2, 3]
    with torch.no_grad():  # of a network that says it already there is nothing to learn
        own = task.taught.guided(x, task.sigmas[places], task.times[places], labels)
    assert task.loss(task.model, x, places, labels, own, seed).detach() < 1e-10
    assert task.loss(task.model, x, places, labels, wanted, seed).detach() > 1e-4


def test_the_score_of_segments_is_their_loss_on_other_paths(options: Options, teacher: Teacher) -> None:
    task = of_segments(options, teacher, ancestral=True)
    found = task.evaluate(task.model.eval())["segment_error"]
    losses = []
    for place in range(4):
        places = torch.full((32,), place)
        x, wanted = task.segment(task.held_out, torch.arange(32), places)
        losses.append(task.loss(task.model, x, places, task.held_out.labels, wanted, torch.tensor(0)).detach())
    assert found == pytest.approx(float(torch.stack(losses).mean().sqrt()), rel=1e-4)


def test_a_network_that_predicts_noise_is_converted_first(options: Options, folders: dict[str, Path], pool: Pool) -> None:
    asked = options("epsilon", method="progressive", student_steps=2, teacher_steps=8)
    assert stages(asked, "epsilon") == (Stage(8, False), Stage(4, True), Stage(2, True))
    assert stages(asked, "v_prediction") == (Stage(4, True), Stage(2, True))
    teacher = open_teacher(load(str(folders["epsilon"])), GUIDANCE)
    task = ProgressiveTask(asked, teacher, pool, pool, teacher=teacher, stage=Stage(8, False))
    assert (task.noise.prediction, task.guide.noise.prediction) == ("v_prediction", "epsilon")
    x, places, labels = points(teacher, 3, 2)
    sigma = task.sigmas[places]
    assert torch.equal(task.target(x, places, labels, None), teacher.guided(x, sigma, task.times[places], labels))


def test_an_aware_student_is_guided_in_its_share_of_the_batches(options: Options, teacher: Teacher, pool: Pool) -> None:
    asked = options(method="cfg-aware", guided_share=0.5, low=2.0, high=6.0)
    task = ProgressiveTask(asked, teacher, pool, pool, teacher=teacher, stage=Stage(2, True))
    guided, dropped = [], 0
    for seed in range(12):
        batch = task.batch(torch.arange(16), torch.Generator().manual_seed(seed))
        scale = batch[4]
        guided.append(bool((scale != 1).all()))
        assert guided[-1] or bool((scale == 1).all())
        dropped += 0 if guided[-1] else int((batch[3] == teacher.null).sum())
        if guided[-1]:
            assert 2 <= float(scale.min()) <= float(scale.max()) <= 6
        assert torch.isfinite(task.loss(task.model, *batch))
    assert 2 <= sum(guided) <= 10
    assert dropped > 0
    assert task.addon()[1]["guidance"] is None  # a call of it is guided as any other


def test_a_network_at_one_scale_is_the_scaled_one_in_a_stock_form(teacher: Teacher) -> None:
    scaled = ScaledNetwork(teacher.student()).eval()
    with torch.no_grad():
        torch.nn.init.normal_(scaled.scale.last.weight, std=0.3)
    x, places, labels = points(teacher, 4, 0)
    times, w = places + 300, torch.full((4,), 4.5)
    with torch.no_grad():
        ours = scaled(x, scale=w, timestep=times, class_labels=labels, return_dict=False)[0]
        stock = scaled.at(4.5)
        theirs = stock(x, timestep=times, class_labels=labels, return_dict=False)[0]
        other = scaled(x, scale=w + 1, timestep=times, class_labels=labels, return_dict=False)[0]
    assert torch.allclose(ours, theirs, atol=1e-5)
    assert not torch.allclose(ours, other, atol=1e-3)
    assert type(stock) is type(teacher.network)
    added = biases(teacher.network, scaled.scale.state_dict(), 4.5)
    for name, bias in added.items():
        assert torch.allclose(teacher.network.get_parameter(name) + bias, stock.get_parameter(name), atol=1e-6)


def test_scores_are_better_for_the_teacher_itself(options: Options, teacher: Teacher, pool: Pool) -> None:
    """A student whose one step is asked where the path ends: an untrained one is further off than one that knows."""
    held_out = Pool(pool.ends[:32], pool.labels[:32], pool.starts[:32], pool.places[:32])  # type: ignore[index]
    task = ConsistencyTask(options(), teacher, pool, held_out)
    plain = task.evaluate(task.model.eval())["end_error"]
    one_step = task.end(task.model, held_out.starts, held_out.labels).detach()  # type: ignore[arg-type]
    known = ConsistencyTask(options(), teacher, pool, replace(held_out, ends=one_step))
    assert known.evaluate(task.model)["end_error"] < 1e-5 < plain
    history = [{"end_error": value} for value in (3.0, 2.0, 2.5, 2.5)]
    assert ConsistencyTask(options(patience=2), teacher, pool, held_out).stop(history)
    assert not ConsistencyTask(options(patience=3), teacher, pool, held_out).stop(history)
    assert not task.stop(history)
