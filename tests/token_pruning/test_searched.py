"""Searched schedules: the optimum is brute force's, the budget is kept, and what is kept is found again."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from vit_models.families import images, tiny

from vis_accel.addons import identity
from vis_accel.apply import accelerate
from vis_accel.errors import DataError, NotApplicableError, UsageError
from vis_accel.token_pruning import searched, stored
from vis_accel.token_pruning.tome import Tome
from vis_accel.vit_models.view import view

SENSITIVITY = [[0.0, 0.01, 0.03, 0.2, 0.9], [0.0, 0.005, 0.01, 0.1, 0.5], [0.0, 0.001, 0.004, 0.01, 0.1]]


def toy(patches: int = 8) -> searched.Work:
    n = numpy.arange(patches + 2, dtype=float)
    return searched.Work(3 * n + 0.1 * n * n, 5 * n)


def summed(numbers: tuple[int, ...], patches: int) -> float:
    total = 0.0
    for row, r in zip(SENSITIVITY, numbers, strict=True):
        total += float(numpy.interp(r / patches, searched._SHARES, row))
        patches -= r
    return total


@pytest.mark.parametrize("share", [0.5, 0.6, 0.8, 0.95])
def test_the_optimum_lies_on_brute_forces_hull(share: float) -> None:
    """Lagrangian dynamic programming finds the points of the lower hull: no schedule is both cheaper and better than the one found."""
    work, patches = toy(), 8
    budget = share * work.of((0, 0, 0), 1, patches)
    found = searched.best_schedule(SENSITIVITY, work, prefix=1, patches=patches, budget=budget)
    cost, loss = work.of(found, 1, patches), summed(found, patches)
    assert cost <= budget
    for numbers in product(range(5), repeat=3):
        if searched._possible(numbers, patches) == numbers and work.of(numbers, 1, patches) <= cost:
            assert summed(numbers, patches) >= loss - 1e-12, numbers


def test_a_budget_nobody_can_meet_is_said() -> None:
    with pytest.raises(UsageError, match="the least is"):
        searched.best_schedule(SENSITIVITY, toy(), prefix=1, patches=8, budget=1.0)


def test_work_counts_what_the_flop_counter_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    model = tiny("plain")
    found = view(model)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        found.blocks[0].module(torch.zeros(1, 17, 32))
    table = searched.worked(found)
    assert 2 * (table.attention[17] + table.feed[17]) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_measured_work_grows_with_the_tokens() -> None:
    table = searched.work_of(view(tiny("plain", embed_dim=64)), torch.zeros(8, 17, 64), rounds=2, points=3)
    assert table.attention.shape == table.feed.shape == (18,)
    assert table.attention[17] > table.attention[0] == 0.0


def test_a_search_keeps_its_budget_and_leaves_the_model() -> None:
    model = tiny("plain")
    with torch.no_grad():
        before = model(images())
    tried = searched.search(model, Tome(r=2), images(8), images(4), moves=6)
    constant = next(one for one in tried if one.name == "constant")
    best = tried[0]
    assert best.work <= constant.work * 1.001
    assert best.loss <= constant.loss
    assert 0 < constant.work < 1
    with torch.no_grad():
        assert torch.equal(model(images()), before)
    with accelerate(model, Tome(r=best.r)):
        model(images())


@pytest.mark.parametrize("method", [Tome(r=(1, 2)), Tome(r=0)])
def test_a_search_wants_a_constant_to_beat(method: Tome) -> None:
    with pytest.raises(UsageError, match="one number"):
        searched.search(tiny("plain"), method, images(), images())


def test_what_is_kept_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIS_ACCEL_CACHE", str(tmp_path))
    model = tiny("plain")
    with pytest.raises(NotApplicableError, match="No schedule was searched") as caught:
        accelerate(model, "tome(r=2, shape='searched')")
    assert "vis-accel schedule" in str(caught.value)
    path = stored.keep(stored.Stored(model=identity(model), method="tome", budget=2, r=(1, 3, 2, 2)))
    with torch.no_grad():
        with accelerate(model, "tome(r=(1, 3, 2, 2))"):
            wanted = model(images())
        with accelerate(model, "tome(r=2, shape='searched')"):
            assert torch.equal(model(images()), wanted)
    path.write_text(path.read_text().replace('"budget": 2', '"budget": 3'))
    with pytest.raises(DataError, match="another schedule"):
        accelerate(model, "tome(r=2, shape='searched')")
    other: Any = tiny("distilled")
    with pytest.raises(NotApplicableError):
        accelerate(other, "tome(r=2, shape='searched')")
