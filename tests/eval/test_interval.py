"""Student's t without scipy, means that merge, intervals that cover."""

from __future__ import annotations

import pytest
import torch

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.interval import Interval, RunningMean, mean_interval, t_quantile


@pytest.mark.parametrize(
    ("p", "df", "table"),  # printed tables of the t distribution
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 3, 3.1824), (0.975, 19, 2.0930), (0.95, 30, 1.6973), (0.975, 1000, 1.9623)],
)
def test_t_quantile_is_that_of_the_tables(p: float, df: int, table: float) -> None:
    assert t_quantile(p, df) == pytest.approx(table, abs=6e-5)
    assert t_quantile(1 - p, df) == pytest.approx(-table, abs=6e-5)


def test_t_quantile_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    for df in (1, 2, 3, 4, 5, 19, 20, 57, 200, 201, 5000):
        for p in (0.51, 0.8, 0.975, 0.999):
            assert t_quantile(p, df) == pytest.approx(float(stats.t.ppf(p, df)), rel=1e-6), (p, df)


def test_t_quantile_refuses_what_is_no_probability() -> None:
    with pytest.raises(UsageError):
        t_quantile(1.0, 5)
    with pytest.raises(UsageError):
        t_quantile(0.9, 0)


def test_means_of_parts_merge_to_the_mean_of_the_whole() -> None:
    values = 1e6 + torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = sum((RunningMean.of(part) for part in values.split([1, 0, 299, 700])), RunningMean())
    assert parts.n == 1000
    assert parts.mean == pytest.approx(float(values.mean()), rel=1e-14)
    assert parts.deviations / 999 == pytest.approx(float(values.var()), rel=1e-9)


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = sum(3.0 in mean_interval([3 + torch.randn(8, generator=generator)]) for _ in range(1000))
    assert 930 <= hits <= 968


def test_one_value_has_no_interval_and_nan_no_mean() -> None:
    with pytest.raises(UsageError, match="at least 2"):
        mean_interval([torch.ones(1)])
    with pytest.raises(DataError, match="1 of 3"):
        RunningMean.of(torch.tensor([1.0, float("nan"), 2.0]))


def test_an_interval_prints_and_measures_itself() -> None:
    interval = Interval(4.0, 3.5, 4.5, 100)
    assert str(interval) == "4 [3.5, 4.5]"
    assert interval.width == 1.0
    assert 4.5 in interval
    assert 4.6 not in interval
