"""Kernel distance against the definition, precision and recall against brute force."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vis_accel.errors import DataError, UsageError
from vis_accel.eval import coverage
from vis_accel.eval.coverage import precision_recall
from vis_accel.eval.kid import kid, kid_difference, mmd_squared


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> Tensor:
    return shift + torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_the_block_estimate_is_the_definition() -> None:
    x, y = normal(7, 3, 0).double(), normal(5, 3, 1, 0.5).double()

    def k(a: Tensor, b: Tensor) -> float:
        return (float(a @ b) / 3 + 1) ** 3

    within = sum(k(x[i], x[j]) for i in range(7) for j in range(7) if i != j) / 42
    within += sum(k(y[i], y[j]) for i in range(5) for j in range(5) if i != j) / 20
    between = sum(k(a, b) for a in x for b in y) / 35
    assert float(mmd_squared(x, y)) == pytest.approx(within - 2 * between, rel=1e-10)


def test_it_agrees_with_the_torchmetrics_formula() -> None:
    from torchmetrics.image.kid import poly_mmd

    x, y = normal(50, 8, 0), normal(50, 8, 1, 0.3)
    assert float(mmd_squared(x.double(), y.double())) == pytest.approx(float(poly_mmd(x.double(), y.double())), rel=1e-9)


def test_it_is_unbiased_and_its_interval_covers() -> None:
    found = [kid(normal(200, 4, 10 + s), normal(300, 4, 1000 + s)) for s in range(100)]
    assert sum(0.0 in interval for interval in found) >= 90
    values = torch.tensor([interval.value for interval in found])
    assert abs(values.mean()) < 3 * values.std() / 10  # the biased estimate would be 0.1 above
    assert (values < 0).any()
    assert found[0].n == 200


def test_sets_in_the_same_order_of_classes_do_not_seem_closer() -> None:
    """Cut by one permutation, both sides' blocks would hold the same classes: the value would fall below 0 and its interval with it."""
    centres = 2 * normal(10, 4, 5).repeat(100, 1)
    found = [kid(normal(1000, 4, s) + centres, normal(1000, 4, 100 + s) + centres) for s in range(20)]
    assert sum(0.0 in interval for interval in found) >= 18


def test_it_sees_a_shift_and_pairs() -> None:
    reference = normal(2000, 8, 0)
    base = normal(1000, 8, 1, 0.1)
    assert kid(base, reference).low > 0
    near = base + 0.01 * normal(1000, 8, 2)
    paired = kid_difference(near, base, reference)
    assert paired.value == pytest.approx(kid(near, reference).value - kid(base, reference).value, abs=1e-12)
    assert paired.width < 0.3 * kid(base, reference).width
    assert kid_difference(base, base, reference).width == 0


def test_kid_refuses_few_broken_or_foreign_features() -> None:
    with pytest.raises(UsageError, match="at least 100"):
        kid(normal(99, 4, 0), normal(200, 4, 1))
    with pytest.raises(UsageError, match="one d"):
        kid(normal(200, 4, 0), normal(200, 5, 1))
    with pytest.raises(UsageError, match="same seeds"):
        kid_difference(normal(200, 4, 0), normal(201, 4, 1), normal(200, 4, 2))
    broken = normal(200, 4, 0)
    broken[3] = float("nan")
    with pytest.raises(DataError, match="1 rows"):
        kid(broken, normal(200, 4, 1))


def brute_force(generated: Tensor, real: Tensor) -> tuple[float, float, float, float]:
    def radius(x: Tensor, k: int) -> Tensor:
        return torch.cdist(x, x).sort(dim=1).values[:, k]  # place 0 is the point itself

    between = torch.cdist(generated, real)
    precision = (between <= radius(real, 3)).any(dim=1).double().mean()
    recall = (between <= radius(generated, 3)[:, None]).any(dim=0).double().mean()
    inside = between <= radius(real, 5)
    return float(precision), float(recall), int(inside.sum()) / (5 * len(real)), float(inside.any(dim=0).double().mean())


def test_precision_and_recall_are_brute_force_in_any_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = normal(300, 4, 0, 0.7).double(), normal(300, 4, 1).double()
    expected = brute_force(generated, real)
    for strip in (1_000_000, 300 * 7):
        monkeypatch.setattr(coverage, "_STRIP", strip)
        found = precision_recall(generated, real)
        assert (found.precision, found.recall, found.density, found.coverage) == pytest.approx(expected, abs=1e-12)
    assert 0.1 < found.precision < 0.95
    assert found.n == 300


def test_equal_sets_cover_one_another() -> None:
    x = normal(200, 4, 0)
    found = precision_recall(x, x)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    assert found.density > 1


def test_precision_and_recall_refuse_unequal_tiny_and_broken_sets() -> None:
    with pytest.raises(UsageError, match="one size"):
        precision_recall(normal(100, 4, 0), normal(101, 4, 1))
    with pytest.raises(UsageError, match="more than 5"):
        precision_recall(normal(5, 4, 0), normal(5, 4, 1))
    with pytest.raises(DataError):
        precision_recall(normal(50, 4, 0) / 0, normal(50, 4, 1))
