"""The mathematics of distillation, against closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from distillation import mixture
from torch import Tensor, nn

from vis_accel.distillation import consistency, guidance, progressive, space
from vis_accel.errors import UnknownNameError, UsageError
from vis_accel.samplers import create, sample
from vis_accel.samplers.consistency import Consistency
from vis_accel.samplers.noise import NoiseModel

SIGMA = torch.tensor([0.03, 0.4, 1.0, 14.6], dtype=torch.float64)


def points(*shape: int) -> Tensor:
    return torch.randn(4, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


# Space


@pytest.mark.parametrize("prediction", space.PREDICTIONS)
def test_output_and_image_are_inverse_and_agree_with_the_samplers(prediction: str) -> None:
    x, image = points(2, 3), points(2, 3).flip(0)
    output = space.output_for(image, x, SIGMA, prediction)
    assert torch.allclose(space.denoised(output, x, SIGMA, prediction), image, atol=1e-10)
    noise = NoiseModel(kind="vp", prediction=prediction, table=tuple(SIGMA.tolist()), times=4)  # type: ignore[arg-type]
    for row, sigma in enumerate(SIGMA.tolist()):
        assert torch.allclose(noise.denoised(output[row], noise.alpha(sigma) * x[row], sigma), image[row], atol=1e-9)


def test_an_unknown_prediction_is_refused() -> None:
    for call in (space.denoised, space.output_for):
        with pytest.raises(UnknownNameError, match="flow_prediction"):
            call(points(1), points(1), SIGMA, "flow_prediction")


def test_the_step_is_the_samplers_ddim() -> None:
    x, lower = points(1), SIGMA / 3
    stepped = space.ddim_step(x, mixture.denoise(x, SIGMA), SIGMA, lower)
    for row in range(4):
        one = slice(row, row + 1)
        theirs = sample(lambda u, s: mixture.denoise(u, torch.tensor([s])), create("ddim"), x[one], (float(SIGMA[row]), float(lower[row])))
        assert torch.allclose(stepped[one], theirs, atol=1e-12)


def test_guidance_of_one_is_none_and_a_scale_goes_to_its_row() -> None:
    c, u = points(3), points(3).flip(0)
    assert torch.allclose(space.guided(c, u, 1.0), c, atol=1e-15)
    rows = space.guided(c, u, torch.tensor([0.0, 1.0, 2.0, 5.0]))
    for row, w in enumerate((0.0, 1.0, 2.0, 5.0)):
        assert torch.allclose(rows[row], u[row] + w * (c[row] - u[row]))


# Progressive


def ddim_from(x: Tensor, *sigmas: Tensor) -> Tensor:
    for s, t in pairwise(sigmas):
        x = space.ddim_step(x, mixture.denoise(x, s), s, t)
    return x


@pytest.mark.parametrize("last", [0.0, 0.25])
def test_one_progressive_target_is_two_ddim_steps(last: float) -> None:
    x = 2 * points(1)
    s, middle, lower = SIGMA, SIGMA * 0.6, SIGMA * last
    reached = ddim_from(x, s, middle, lower)
    target = progressive.two_steps(x, reached, s, lower)
    assert torch.allclose(space.ddim_step(x, target, s, lower), reached, atol=1e-11)
    assert not torch.allclose(target, mixture.denoise(x, s), atol=1e-3)  # one step of the teacher would not do


def test_the_papers_own_form_of_the_target() -> None:
    """x~ = (z'' - (s'' / s) z) / (a'' - (s'' / s) a) in z = a x, Algorithm 2."""
    x, lower = points(1), SIGMA / 2
    reached = ddim_from(x, SIGMA, SIGMA * 0.7, lower)
    a, a2 = space.alpha(SIGMA)[:, None], space.alpha(lower)[:, None]
    ratio = (a2 * lower[:, None]) / (a * SIGMA[:, None])
    theirs = (a2 * reached - ratio * a * x) / (a2 - ratio * a)
    assert torch.allclose(progressive.two_steps(x, reached, SIGMA, lower), theirs, atol=1e-11)


def test_halvings_and_what_no_halving_gives() -> None:
    assert progressive.halvings(16, 4) == (8, 4)
    assert progressive.halvings(2, 1) == (1,)
    for teacher, student in ((12, 4), (4, 4), (2, 4), (7, 3)):
        with pytest.raises(UsageError, match="--teacher-steps 8 or" if student == 4 else "--teacher-steps 6 or"):
            progressive.halvings(teacher, student)


def test_times_of_a_student_are_among_its_teachers() -> None:
    for steps in (1, 2, 4, 8):
        assert progressive.trailing_times(2 * steps, 1000)[::2] == progressive.trailing_times(steps, 1000)
    assert progressive.trailing_times(4, 1000) == (999, 749, 499, 249)
    with pytest.raises(UsageError, match="1001"):
        progressive.trailing_times(1001, 1000)


def test_the_weight_is_that_of_the_larger_of_two_losses() -> None:
    x, found, wanted = points(5), points(5), points(5).flip(0)
    of_image = (found - wanted).square().sum(1)
    of_noise = (space.output_for(found, x, SIGMA, "epsilon") - space.output_for(wanted, x, SIGMA, "epsilon")).square().sum(1)
    assert torch.allclose(progressive.snr_weight(SIGMA) * of_image, torch.maximum(of_image, of_noise))


# Consistency


def test_the_function_is_the_identity_at_the_last_knot_and_the_teacher_elsewhere() -> None:
    x, image = points(3), points(3).flip(0)
    times = torch.tensor([0, 39, 499, 999])
    lcm = consistency.lcm_function(x, image, times)
    assert torch.equal(lcm[0], x[0])
    assert torch.allclose(lcm[1:], image[1:], atol=1e-4)
    edm = consistency.edm_function(x, image, SIGMA, float(SIGMA[0]))
    assert torch.allclose(edm[0], x[0], atol=1e-12)
    assert torch.allclose(edm[2:], image[2:], atol=0.1)


def test_the_function_on_pixels_is_the_papers() -> None:
    """f = c_skip x + c_out F with F from EDM's own preconditioning of D."""
    x, image, q, low = points(3), points(3).flip(0), 0.5, 0.03
    s = SIGMA[:, None]
    network = (image - q**2 / (s**2 + q**2) * x) / (s * q / (s**2 + q**2).sqrt())
    theirs = q**2 / ((s - low) ** 2 + q**2) * x + q * (s - low) / (s**2 + q**2).sqrt() * network
    assert torch.allclose(consistency.edm_function(x, image, SIGMA, low), theirs, atol=1e-12)


def test_the_sampler_makes_the_same_function_as_the_training() -> None:
    x, image = points(3), points(3).flip(0)
    solver = Consistency(boundary="edm", lowest=0.03)
    whole = consistency.edm_function(x, image, SIGMA, 0.03)
    for row, sigma in enumerate(SIGMA.tolist()):
        assert torch.allclose(solver.function(x[row], image[row], sigma), whole[row], atol=1e-12)
    assert torch.equal(Consistency().function(x, image, 1.0), image)


def test_knots_and_steps_are_those_of_the_stock_scheduler() -> None:
    from diffusers import LCMScheduler

    for knots in (20, 25, 50):
        times = consistency.grid_times(knots, 1000)
        assert times[0] == 0
        assert times[-1] == 999
        for steps in (1, 2, 3, 4, 7, knots):
            stock = LCMScheduler(original_inference_steps=knots)
            stock.set_timesteps(steps)
            assert [times[place] for place in consistency.inference_indices(steps, knots)] == stock.timesteps.tolist()


def test_more_steps_than_knots_and_knots_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match=r"1 \.\. 25 steps; got 26"):
        consistency.inference_indices(26, 25)
    with pytest.raises(UsageError, match="got 30"):
        consistency.grid_times(30, 1000)


def test_pseudo_huber_is_a_square_near_zero_and_a_length_far_away() -> None:
    c = consistency.huber_width(256)
    assert c == pytest.approx(0.00054 * 16)
    tiny, far = torch.full((1, 4), 1e-5, dtype=torch.float64), torch.full((1, 4), 50.0, dtype=torch.float64)
    assert float(consistency.pseudo_huber(tiny, c)) == pytest.approx(4e-10 / (2 * c), rel=1e-3)
    assert float(consistency.pseudo_huber(far, c)) == pytest.approx(100 - c, rel=1e-6)
    assert float(consistency.pseudo_huber(torch.zeros(1, 4), c)) == pytest.approx(0, abs=1e-9)


class Small(nn.Module):
    """D on a line: a few layers around x / sqrt(1 + sigma^2), with the noise level's logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)).double()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        rows = sigma[:, None]
        inner = self.layers(torch.cat([x / (1 + rows**2).sqrt(), rows.log() / 3], dim=1))
        return x / (1 + rows**2) + rows / (1 + rows**2).sqrt() * inner


def test_after_training_on_a_mixture_the_function_is_constant_along_the_exact_path() -> None:
    torch.manual_seed(0)
    low, knots = 0.05, torch.logspace(math.log10(0.05), 1, 19, dtype=torch.float64)
    student, generator = Small(), torch.Generator().manual_seed(1)
    target = Small()
    target.load_state_dict(student.state_dict())
    optimizer = torch.optim.Adam(student.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 8e-3, total_steps=800)

    def function(network: nn.Module, x: Tensor, sigma: Tensor) -> Tensor:
        return consistency.edm_function(x, network(x, sigma), sigma, low)

    def spread() -> float:
        ends = []
        for start in (-9.0, -2.0, 0.5, 4.0, 12.0):
            along = [(mixture.flow(start, 10.0, float(s)), s) for s in knots[[0, 4, 9, 14, 18]]]
            x, sigma = torch.tensor([[u] for u, _ in along], dtype=torch.float64), torch.stack([s for _, s in along])
            with torch.no_grad():
                ends.append(function(student, x, sigma).flatten())
        made = torch.stack(ends)
        return float((made - made[:, :1]).abs().max())  # the first column is x itself, at the last knot

    before = spread()
    for _ in range(800):
        place = torch.randint(1, len(knots), (256,), generator=generator)
        s, t = knots[place], knots[place - 1]
        x = space.noised(mixture.draw(256, generator), torch.randn(256, 1, generator=generator, dtype=torch.float64), s)
        first = mixture.denoise(x, s)
        reached = space.ddim_step(x, first, s, t)
        slope = ((x - first) / s[:, None] + (reached - mixture.denoise(reached, t)) / t[:, None]) / 2
        with torch.no_grad():
            wanted = function(target, x + (t - s)[:, None] * slope, t)
        loss = consistency.pseudo_huber(function(student, x, s) - wanted, 0.03).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for ours, theirs in zip(target.parameters(), student.parameters(), strict=True):
                ours.lerp_(theirs, 0.1)
    assert before > 1.0
    assert spread() < 0.25


def test_several_steps_of_the_exact_function_give_the_mixture_again() -> None:
    """Down by the exact flow, up with fresh noise: the images keep their mean and deviation."""
    generator = torch.Generator().manual_seed(3)
    x = mixture.draw(300, generator) + 10 * torch.randn(300, 1, generator=generator, dtype=torch.float64)

    def end(points: Tensor, sigma: float) -> Tensor:
        return torch.tensor([[mixture.flow(float(u), sigma, 0.0)] for u in points], dtype=torch.float64)

    calls: list[float] = []

    def answer(points: Tensor, sigma: float) -> Tensor:
        calls.append(sigma)
        return end(points, sigma)

    made = sample(answer, Consistency(), x, (10.0, 2.0, 0.5, 0.0))
    assert calls == [10.0, 2.0, 0.5]
    mean = sum(w * m for w, m in zip(mixture.W, mixture.M, strict=True))
    variance = sum(w * (m * m + q * q) for w, m, q in zip(mixture.W, mixture.M, mixture.Q, strict=True)) - mean**2
    assert float(made.mean()) == pytest.approx(mean, abs=0.15)
    assert float(made.std()) == pytest.approx(math.sqrt(variance), abs=0.1)
    assert torch.equal(sample(end, Consistency(), x, (10.0, 0.0)), end(x, 10.0))  # one step draws no noise


@pytest.mark.parametrize("fresh", [0.0, 0.6])
def test_part_of_the_noise_kept_keeps_the_noise_level(fresh: float) -> None:
    """All images at one point m: f is m, and x - m has the deviation of each knot, however much of it is fresh."""
    generator = torch.Generator().manual_seed(4)
    m, seen = 0.7, []
    x = m + 8 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)

    def answer(points: Tensor, sigma: float) -> Tensor:
        seen.append(points - m)
        return torch.full_like(points, m)

    sample(answer, Consistency(fresh=fresh), x, (8.0, 2.0, 0.5, 0.0))
    assert [float(points.std()) for points in seen] == pytest.approx([8.0, 2.0, 0.5], rel=0.05)
    kept = float(torch.corrcoef(torch.cat([seen[0].T, seen[1].T]))[0, 1])
    assert kept == pytest.approx(math.sqrt(1 - fresh**2), abs=0.03)


# Guidance


def test_the_scale_embedding_begins_at_nothing_and_tells_scales_apart() -> None:
    embedding = guidance.ScaleEmbedding(3, 8)
    scales = torch.tensor([1.0, 2.0, 5.0, 8.0])
    assert embedding(scales).shape == (3, 4, 8)
    assert not embedding(scales).any()
    found = guidance.features(scales)
    assert found.shape == (4, guidance.FEATURES)
    assert torch.pdist(found).min() > 0.5


def test_after_training_the_guidance_student_gives_the_teachers_guided_output() -> None:
    """Two linear halves; the student takes x, w and the class, and is trained at random scales only."""
    torch.manual_seed(0)
    teacher = nn.Linear(3, 2)

    def halves(x: Tensor) -> tuple[Tensor, Tensor]:
        return teacher(torch.cat([x, torch.ones(len(x), 1)], 1)), teacher(torch.cat([x, torch.zeros(len(x), 1)], 1))

    student = nn.Sequential(nn.Linear(2 + guidance.FEATURES, 64), nn.SiLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(student.parameters(), lr=3e-3)
    for step in range(900):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / 900)
        x, w = torch.randn(128, 2), 1 + 7 * torch.rand(128)
        with torch.no_grad():
            wanted = space.guided(*halves(x), w)
        loss = guidance.output_loss(student(torch.cat([x, guidance.features(w)], 1)), wanted).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x = torch.randn(200, 2)
    for scale in (1.5, 5.0, 7.5):
        w = torch.full((200,), scale)
        with torch.no_grad():
            apart = (student(torch.cat([x, guidance.features(w)], 1)) - space.guided(*halves(x), scale)).square().mean().sqrt()
            size = (space.guided(*halves(x), scale) - halves(x)[0]).square().mean().sqrt()
        assert apart < 0.1 * max(1.0, float(size))
