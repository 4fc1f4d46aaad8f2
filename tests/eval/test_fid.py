"""The Frechet distance against two independent formulas, its interval against repeated sampling, its refusals."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.features import FeatureNet, extract
from vis_accel.eval.fid import Statistics, fid_with_interval, frechet_distance, paired_difference, real_floor


def normal(n: int, d: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """n draws of a correlated Gaussian."""
    mix = torch.randn(d, d, generator=torch.Generator().manual_seed(99)) / d**0.5 + torch.eye(d)
    return shift + scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) @ mix


def gram_distance(x: Tensor, y: Tensor) -> float:
    """FID without any covariance root: Tr (S1 S2)^1/2 is the nuclear norm of Xc Yc^T / sqrt((n - 1)(m - 1))."""
    x, y = x.double(), y.double()
    xc, yc = x - x.mean(0), y - y.mean(0)
    cross = torch.linalg.matrix_norm(xc @ yc.T, "nuc") / ((len(x) - 1) * (len(y) - 1)) ** 0.5
    spread = xc.square().sum() / (len(x) - 1) + yc.square().sum() / (len(y) - 1)
    return float((x.mean(0) - y.mean(0)).square().sum() + spread - 2 * cross)


def test_it_agrees_with_the_exact_gram_form() -> None:
    for seed, shift, scale in ((1, 0.0, 1.0), (2, 0.3, 1.0), (3, 5.0, 0.2)):
        x, y = normal(400, 16, seed, shift, scale), normal(350, 16, seed + 10)
        assert frechet_distance(Statistics.of(x), Statistics.of(y)) == pytest.approx(gram_distance(x, y), rel=1e-6)


def test_it_agrees_with_torchmetrics_through_the_same_wrapper(net: FeatureNet, make_images: Callable[..., Tensor]) -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance

    real, fake = make_images(600, 0), make_images(400, 1).pow(1.2)
    metric = FrechetInceptionDistance(feature=net, normalize=True)
    for images, is_real in ((real, True), (fake, False)):
        for batch in images.split(100):
            metric.update(batch, real=is_real)
    ours = frechet_distance(Statistics.of(extract(net, fake.split(100))), Statistics.of(extract(net, real.split(100))))
    assert ours == pytest.approx(float(metric.compute()), rel=1e-5)  # their result is rounded to float32


def test_it_is_the_closed_form_of_two_gaussians() -> None:
    x = normal(2000, 8, 0)
    assert frechet_distance(Statistics.of(x + 2), Statistics.of(x)) == pytest.approx(8 * 4, rel=1e-6)  # |m1 - m2|^2
    trace = float(torch.cov(x.double().T).trace())
    assert frechet_distance(Statistics.of(3 * (x - x.mean(0))), Statistics.of(x - x.mean(0))) == pytest.approx(4 * trace, rel=1e-6)


def test_equal_sets_are_at_distance_0_also_with_a_dead_feature() -> None:
    x = normal(400, 8, 0)
    x[:, 3] = 0
    assert frechet_distance(Statistics.of(x), Statistics.of(x)) < 1e-6
    assert frechet_distance(Statistics.of(x), Statistics.of(x.flip(0))) < 1e-6


def test_statistics_add_and_subtract() -> None:
    x = normal(1000, 8, 0)
    whole = Statistics.of(x)
    parts = sum((Statistics.of(part) for part in x.split(130)), Statistics.zeros(8))
    assert parts.n == whole.n
    torch.testing.assert_close(parts.outer, whole.outer, rtol=1e-12, atol=1e-10)
    torch.testing.assert_close((whole - Statistics.of(x[:300])).covariance, torch.cov(x[300:].double().T), rtol=1e-9, atol=1e-12)
    with pytest.raises(UsageError):
        Statistics.of(x[:10]) - whole
    with pytest.raises(UsageError, match="8 and 9"):
        whole + Statistics.zeros(9)


def test_too_few_images_are_refused_with_the_number_needed() -> None:
    reference = Statistics.of(normal(1000, 8, 0))
    few = normal(159, 8, 1)
    with pytest.raises(UsageError, match="at least 160"):
        frechet_distance(Statistics.of(few), reference)
    with pytest.raises(UsageError, match="at least 160"):
        fid_with_interval(few, reference)
    with pytest.raises(UsageError, match="at least 160"):
        paired_difference(few, few, reference)
    with pytest.raises(UsageError, match="The reference has 159"):
        fid_with_interval(normal(1000, 8, 0), Statistics.of(few))
    fid_with_interval(normal(160, 8, 1), reference)


def test_different_n_and_different_networks_are_refused() -> None:
    reference = Statistics.of(normal(1000, 8, 0))
    with pytest.raises(UsageError, match="same seeds"):
        paired_difference(normal(400, 8, 1), normal(401, 8, 2), reference)
    with pytest.raises(UsageError, match="another feature network"):
        fid_with_interval(normal(400, 9, 1), reference)


def test_features_that_are_not_finite_are_refused() -> None:
    x = normal(400, 8, 0)
    x[7, 3], x[9, 1] = float("nan"), float("inf")
    with pytest.raises(DataError, match="2 of 400"):
        fid_with_interval(x, Statistics.of(normal(400, 8, 1)))


def test_the_interval_covers_the_true_value() -> None:
    """What it should cover is FID at this n, bias included: the mean over many repeats."""
    reference = Statistics.of(normal(20_000, 8, 5))
    found = [fid_with_interval(normal(400, 8, 1000 + seed, shift=0.15), reference) for seed in range(60)]
    mean = sum(frechet_distance(Statistics.of(normal(400, 8, 2000 + s, shift=0.15)), reference) for s in range(400)) / 400
    assert sum(mean in interval for interval in found) >= 54
    spread = torch.tensor([interval.value for interval in found]).std()
    half = sum(interval.width for interval in found) / 60 / 2
    assert 1.4 < half / float(spread) < 3.2  # and is not wide for nothing: 2.09 standard errors


def test_the_interval_does_not_depend_on_the_order_of_classes() -> None:
    """Images that come class by class, or in turn, must not put one class into each group."""
    centres = torch.arange(20.0)[:, None] * torch.ones(8)
    in_turn = normal(2000, 8, 0) + centres.repeat(100, 1)
    sorted_ = in_turn.reshape(100, 20, 8).transpose(0, 1).reshape(2000, 8)
    random_ = in_turn[torch.randperm(2000, generator=torch.Generator().manual_seed(4))]
    reference = Statistics.of(in_turn + 0.1)
    widths = [fid_with_interval(x, reference).width for x in (in_turn, sorted_, random_)]
    assert max(widths) < 2 * min(widths)


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    reference = Statistics.of(normal(5000, 8, 5))
    baseline = normal(1000, 8, 1, shift=0.2)
    candidate = baseline + 0.02 * torch.randn(1000, 8, generator=torch.Generator().manual_seed(2))
    paired = paired_difference(candidate, baseline, reference)
    a, b = fid_with_interval(candidate, reference), fid_with_interval(baseline, reference)
    assert paired.value == pytest.approx(a.value - b.value, abs=1e-12)
    assert paired.width < 0.2 * (a.width**2 + b.width**2) ** 0.5
    back = paired_difference(baseline, candidate, reference)
    assert (back.low, back.high) == pytest.approx((-paired.high, -paired.low))
    same = paired_difference(baseline, baseline, reference)
    assert (same.value, same.width) == (0.0, 0.0)


def test_the_floor_is_above_0_and_falls_with_n() -> None:
    real = normal(4000, 8, 0)
    reference = Statistics.of(normal(20_000, 8, 5))
    floors = [real_floor(real, reference, n) for n in (200, 1000, 4000)]
    assert floors[0] > floors[1] > floors[2] > 0
    with pytest.raises(UsageError, match="there are 4000"):
        real_floor(real, reference, 4001)
