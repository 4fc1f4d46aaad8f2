"""singlestep(fast=True): the paper's plan of orders, where its calls lie, and what they are worth."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DPMSolverSinglestepScheduler

from vis_accel.errors import UsageError
from vis_accel.samplers import NoiseModel, create, sample
from vis_accel.samplers.driver import plan
from vis_accel.samplers.singlestep import fast_orders

NOISE = NoiseModel.from_config({"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02})


@pytest.mark.parametrize(
    ("calls", "orders"),
    [
        (1, [1]),
        (2, [2]),
        (3, [2, 1]),
        (4, [3, 1]),
        (5, [3, 2]),
        (6, [3, 2, 1]),
        (10, [3, 3, 3, 1]),
        (11, [3, 3, 3, 2]),
        (12, [3, 3, 3, 2, 1]),
    ],
)
def test_the_orders_are_the_papers(calls: int, orders: list[int]) -> None:
    assert fast_orders(calls, to_zero=False) == orders  # appendix D.3, K = floor(n / 3) + 1 steps
    assert sum(fast_orders(calls, to_zero=True)) == calls
    if calls % 3 == 2:
        assert fast_orders(calls, to_zero=True) == [*orders[:-1], 1, 1]  # at 0 a second evaluation of one step has no place


@pytest.mark.parametrize("calls", range(4, 13))
def test_it_has_the_orders_of_the_stock_scheduler(calls: int) -> None:
    """Theirs ends at 0, where it makes a last step of order 2 two of order 1, as ours does."""
    stock = DPMSolverSinglestepScheduler(solver_order=3, lower_order_final=True)
    found = []
    for index, order in enumerate(stock.get_order_list(calls)):  # 1, 2, 3 within each step
        found += [order] if index + 1 == calls or stock.get_order_list(calls)[index + 1] == 1 else []
    assert sorted(found) == sorted(fast_orders(calls, to_zero=True))


@pytest.mark.parametrize("schedule", ["auto", "logsnr", "karras", "trailing"])
@pytest.mark.parametrize("steps", range(1, 14))
def test_steps_are_calls(steps: int, schedule: str) -> None:
    solver = create("singlestep", order=3, fast=True, schedule=schedule)
    knots = solver.knots(steps, NOISE)
    assert len(knots) == steps + 1
    assert all(s > t for s, t in pairwise(knots))
    assert len(plan(solver, knots)) == steps


def test_by_log_sigma_its_steps_are_equally_long_and_its_calls_are_on_the_knots() -> None:
    solver = create("singlestep", order=3, fast=True)
    knots = solver.knots(10, NOISE)
    steps = solver.steps_of(knots)  # type: ignore[attr-defined]
    assert [order for order, _, _ in steps] == [3, 3, 3, 1]
    lengths = [math.log(s / t) for _, s, t in steps[:-1]]
    assert lengths == pytest.approx([lengths[0]] * 3)
    assert plan(solver, knots) == pytest.approx(list(knots[:-1]))


def test_a_run_of_threes_is_the_solver_of_order_three(mixture: Any) -> None:
    knots = create("singlestep", order=3).knots(4, NOISE)  # three steps, and one to 0
    x = knots[0] * torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain = sample(mixture.denoise, create("singlestep", order=3), x, knots)
    fast = create("singlestep", order=3, fast=True)
    assert torch.allclose(sample(mixture.denoise, fast, x, fast.knots(10, NOISE)), plain, atol=1e-12, rtol=0)


def test_more_calls_are_nearer_whatever_is_left_over(mixture: Any) -> None:
    x = 10.0 * torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    exact = torch.tensor([mixture.flow(float(u), 10.0, 0.02) for u in x], dtype=torch.float64)

    def error(calls: int) -> float:
        knots = tuple(10.0 * (0.02 / 10.0) ** (i / calls) for i in range(calls + 1))
        found = sample(mixture.denoise, create("singlestep", order=3, fast=True), x, knots)
        return float((found - exact).square().mean().sqrt())

    for rest in range(3):
        errors = [error(calls + rest) for calls in (12, 24, 48)]
        assert errors[1] < errors[0] / 3
        assert errors[2] < errors[1] / 3


def test_its_order_must_be_three() -> None:
    with pytest.raises(UsageError, match="fast"):
        create("singlestep", order=2, fast=True)
