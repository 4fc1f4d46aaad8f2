"""The paired difference of two accuracies: closed forms, symmetry, the normal limit, and how often the interval holds the truth."""

from __future__ import annotations

import math
from statistics import NormalDist

import pytest
import torch
from scipy.stats import multinomial

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.paired_accuracy import paired_difference, paired_interval, verdict

Z = NormalDist().inv_cdf(0.975)


@pytest.mark.parametrize("n", [10, 500, 10_000])
def test_without_a_single_disagreement_the_ends_are_known(n: int) -> None:
    found = paired_interval(0, 0, n)
    assert (found.value, found.n) == (0, n)
    assert found.high == pytest.approx(Z * Z / (n + Z * Z), abs=1e-9)
    assert found.low == -found.high


@pytest.mark.parametrize(("lost", "won", "n"), [(3, 1, 40), (0, 5, 40), (40, 0, 40), (7, 7, 40)])
def test_the_sides_are_mirror_images(lost: int, won: int, n: int) -> None:
    one, other = paired_interval(lost, won, n), paired_interval(won, lost, n)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-12)
    assert -1 <= one.low <= one.value <= one.high <= 1


def test_with_many_disagreements_it_is_the_normal_interval_of_per_image_differences() -> None:
    lost, won, n = 900, 500, 10_000
    mean = (won - lost) / n
    half = Z * math.sqrt(((won + lost) / n - mean**2) / n)
    found = paired_interval(lost, won, n)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half), abs=1e-4)


def test_at_each_end_the_score_test_is_on_the_edge_of_refusing() -> None:
    lost, won, n = 9, 4, 60
    for end in (paired_interval(lost, won, n).low, paired_interval(lost, won, n).high):
        shares = [max(0.0, -end) + (min(1.0, 1 - end) / 2 - max(0.0, -end)) * i / 200_000 for i in range(1, 200_000)]
        likely = max(
            (q for q in shares if q + end > 0 and 1 - 2 * q - end > 0),
            key=lambda q: lost * math.log(q) + won * math.log(q + end) + (n - lost - won) * math.log(1 - 2 * q - end),
        )
        score = (won - lost - n * end) / math.sqrt(n * (2 * likely + end * (1 - end)))
        assert abs(score) == pytest.approx(Z, abs=1e-3)


@pytest.mark.parametrize(("loses", "wins"), [(0.02, 0.02), (0.10, 0.02), (0.25, 0.15)])
def test_the_interval_holds_the_truth_about_95_times_in_100(loses: float, wins: float) -> None:
    n, covered = 60, 0.0
    for lost in range(n + 1):
        for won in range(n + 1 - lost):
            chance = float(multinomial.pmf([lost, won, n - lost - won], n, [loses, wins, 1 - loses - wins])) if lost + won < 40 else 0.0
            if chance > 1e-9 and wins - loses in paired_interval(lost, won, n):
                covered += chance
    assert 0.93 < covered < 0.99


def test_predictions_are_compared_image_by_image() -> None:
    labels = torch.tensor([0, 1, 2, 3, 4])
    found = paired_difference(torch.tensor([0, 1, 2, 0, 0]), torch.tensor([0, 0, 0, 3, 0]), labels)
    assert found.value == pytest.approx(-0.2)
    assert (found.low, found.high) == (paired_interval(2, 1, 5).low, paired_interval(2, 1, 5).high)
    with pytest.raises(DataError, match="2, 5 and 5"):
        paired_difference(labels[:2], labels, labels)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ((0, 0, 10_000), "same: loses at most 0.0 points"),
        ((60, 60, 10_000), "same: loses at most 0.2 points"),
        ((0, 0, 500), "too few images to tell: between 0.8 points lost and 0.8 won"),
        ((220, 100, 10_000), "loses 1.2 [0.9, 1.6] points"),
        ((100, 220, 10_000), "better: gains 1.2 [0.9, 1.6] points"),
    ],
)
def test_the_verdict_says_what_may_be_said(counts: tuple[int, int, int], words: str) -> None:
    said = verdict(paired_interval(*counts))
    assert said.startswith(words)
    assert said.endswith(f"n = {counts[2]}")


@pytest.mark.parametrize("counts", [(1, 0, 0), (-1, 0, 5), (3, 3, 5)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(UsageError, match="paired difference"):
        paired_interval(*counts)
