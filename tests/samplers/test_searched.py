"""Searched knots: the optimum is the brute-force one, more calls cost less, and the search helps on a problem with a known answer."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.samplers import Solver, create, sample
from vis_accel.samplers.searched import Trajectory, best_path, knots_of, path_cost, refine, stacked, step_errors


def exact_path(mixture: Any, steps: int) -> Trajectory:
    """The probability flow itself, at knots of equal log sigma and 0."""
    sigmas = [20.0 * (0.02 / 20.0) ** (i / (steps - 1)) for i in range(steps)] + [0.0]
    starts = [-31.0, -13.0, -4.0, 2.0, 9.0, 24.0]
    points = [torch.tensor([[mixture.flow(x, sigmas[0], max(s, 1e-6))] for x in starts], dtype=torch.float64) for s in sigmas]
    return Trajectory(tuple(sigmas), tuple(points), tuple(mixture.denoise(x, s) for x, s in zip(points, sigmas, strict=False) if s > 0))


@pytest.fixture(scope="module")
def path(mixture: Any) -> Trajectory:
    return exact_path(mixture, 9)


@pytest.mark.parametrize("calls", [1, 2, 3, 5, 8, 9])
@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("name", ["ddim", "dpm"])
def test_the_path_found_is_the_best_of_all(path: Trajectory, name: str, power: float, calls: int) -> None:
    errors = step_errors(create(name), path)
    last = len(path.sigmas) - 1
    every = [(0, *inner, last) for inner in itertools.combinations(range(1, last), calls - 1)]
    best = min(every, key=lambda one: path_cost(errors, one, power=power))
    found = best_path(errors, calls, power=power)
    assert len(found) == calls + 1
    assert path_cost(errors, found, power=power) == pytest.approx(path_cost(errors, best, power=power), rel=1e-12)


def test_more_calls_cost_less(path: Trajectory) -> None:
    for name in ("ddim", "dpm", "unipc", "ipndm"):
        errors = step_errors(create(name), path)
        costs = [path_cost(errors, best_path(errors, calls, power=2.0), power=2.0) for calls in range(1, 10)]
        assert all(later < earlier for earlier, later in itertools.pairwise(costs[:6])), name


def test_a_step_of_the_table_is_the_solvers_own_with_one_evaluation_of_history(mixture: Any, path: Trajectory) -> None:
    errors = step_errors(create("dpm"), path)
    sigmas, x, d = path.sigmas, path.points, path.denoised
    made = sample(mixture.denoise, create("dpm", lower_order_final=False), x[3], (sigmas[3], sigmas[6]), history=[(sigmas[1], x[1], d[1])])
    miss = float((made - x[6]).square().mean().sqrt()) / (1 + sigmas[6] ** 2) ** 0.5
    assert errors.later[1, 3, 6] == pytest.approx(miss, rel=1e-12)
    assert errors.first[0, 2] == pytest.approx(step_errors(create("ddim"), path).first[0, 2], rel=1e-9)  # nobody has history there


def test_searched_knots_end_nearer_than_equal_steps_of_log_sigma(mixture: Any) -> None:
    """Against the exact flow, from starts the search has not seen."""
    fine = exact_path(mixture, 25)
    starts = [-22.0, -7.0, 0.5, 5.0, 16.0]
    exact = torch.tensor([[mixture.flow(x, 20.0, 1e-6)] for x in starts], dtype=torch.float64)

    def miss(solver: Solver, knots: tuple[float, ...]) -> float:
        x = torch.tensor([[x] for x in starts], dtype=torch.float64)
        return float((sample(mixture.denoise, solver, x, knots) - exact).square().mean().sqrt())

    for name in ("ddim", "dpm"):
        solver = create(name)
        searched = knots_of(best_path(step_errors(solver, fine), 6), fine.sigmas)
        equal = (*(20.0 * (0.02 / 20.0) ** (i / 5) for i in range(6)), 0.0)
        assert miss(solver, searched) < miss(solver, equal), name


def test_refinement_finds_the_minimum_and_keeps_ends_and_order(path: Trajectory) -> None:
    asked: list[tuple[float, ...]] = []

    def bowl(knots: tuple[float, ...]) -> float:
        asked.append(knots)
        return sum((a - b) ** 2 for a, b in zip(knots, (9.0, 5.0, 1.5, 0.0), strict=True))

    knots, error = refine(bowl, (9.0, 2.0, 1.0, 0.0), evaluations=200)
    assert knots == pytest.approx((9.0, 5.0, 1.5, 0.0), rel=0.05)
    assert (knots in asked, error) == (True, bowl(knots))
    assert all(one[0] == 9.0 and one[-1] == 0.0 and all(a > b for a, b in itertools.pairwise(one)) for one in asked)
    asked.clear()
    refine(bowl, (9.0, 2.0, 1.0, 0.0), evaluations=7)
    assert len(asked) == 7
    assert refine(bowl, (9.0, 5.0, 1.5, 0.0), evaluations=50)[0] == (9.0, 5.0, 1.5, 0.0)


def test_printed_knots_are_the_knots(path: Trajectory) -> None:
    uneven = (20.00000049, *path.sigmas[1:])  # the first knot rounds down, never above what the model knows
    assert knots_of((0, 3, 9), uneven)[0] == 20.0
    assert knots_of((0, 3, 9), (19.99999951, *path.sigmas[1:]))[0] <= 19.99999951
    knots = knots_of((0, 3, 5, 9), path.sigmas)
    assert knots == tuple(float(f"{s:.6g}") for s in knots)
    assert create("dpm", schedule=knots) == create("dpm", schedule=tuple(float(str(s)) for s in knots))


def test_batches_join_in_order(path: Trajectory) -> None:
    halves = [
        Trajectory(path.sigmas, tuple(x[part] for x in path.points), tuple(d[part] for d in path.denoised))
        for part in (slice(0, 2), slice(2, 6))
    ]
    assert all(torch.equal(a, b) for a, b in zip(stacked(halves).points, path.points, strict=True))


def test_what_cannot_be_searched_is_refused(path: Trajectory) -> None:
    for name in ("heun", "singlestep"):
        with pytest.raises(NotApplicableError, match="between the knots"):
            step_errors(create(name), path)
    for noisy in (create("ddpm"), create("dpm-sde"), create("euler-ancestral"), create("ddim", eta=0.5)):
        with pytest.raises(NotApplicableError, match="fresh noise"):
            step_errors(noisy, path)
    for calls in (0, 10):
        with pytest.raises(UsageError, match=r"1 \.\. 9"):
            best_path(step_errors(create("ddim"), path), calls)
    with pytest.raises(UsageError, match="as many points"):
        Trajectory(path.sigmas, path.points[1:], path.denoised)
    with pytest.raises(UsageError, match="told apart"):
        knots_of((0, 1, 2), (1.0, 0.9999999999, 0.0))
