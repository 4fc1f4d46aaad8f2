"""Criteria, thresholds and heads of early exits."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import beta, binom

from vis_accel.early_exit.calibrate import _ladder, _losses, clopper_pearson, leave, losses_allowed, quantile_thresholds, risk_controlled
from vis_accel.early_exit.criteria import agreeing, score
from vis_accel.early_exit.exits import bucket
from vis_accel.early_exit.heads import HEADS, build_head
from vis_accel.errors import UnknownNameError, UsageError


def test_scores_by_hand() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.5, 0.0]]))
    torch.testing.assert_close(score(logits[:1], "confidence"), torch.tensor([0.7]))
    torch.testing.assert_close(score(logits[:1], "margin"), torch.tensor([0.5]))
    wanted = 0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.1)
    torch.testing.assert_close(score(logits[:1], "entropy"), torch.tensor([wanted]))


@pytest.mark.parametrize("criterion", ["confidence", "margin", "entropy"])
def test_the_surest_image_has_the_highest_score_and_nan_none(criterion: str) -> None:
    """p log p with p = 0 is NaN where entropy is computed from probabilities, and then the surest images never leave (DeeBERT, LGViT)."""
    logits = torch.tensor([[0.0, 200.0], [0.0, 1.0], [float("nan"), 0.0], [float("inf"), 0.0]], dtype=torch.float32)
    found = score(logits, criterion)
    assert found[0] > found[1]
    assert found[2:].isnan().all()
    half = score(logits[:2].half(), criterion)
    assert half.isfinite().all()
    assert not (found[2:] >= -math.inf).any()


def test_scores_are_of_their_own_row() -> None:
    """LGViT's confidence takes the maximum over the whole batch."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    for criterion in ("confidence", "margin", "entropy"):
        alone = torch.cat([score(row[None], criterion) for row in logits])
        torch.testing.assert_close(score(logits, criterion), alone)


def test_agreeing_counts_in_a_row() -> None:
    streak = agreeing(torch.tensor([1, 2]), torch.tensor([-1, -1]), torch.tensor([0, 0]))
    assert streak.tolist() == [1, 1]
    assert agreeing(torch.tensor([1, 3]), torch.tensor([1, 2]), streak).tolist() == [2, 1]


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 40), (12, 5000), (49, 5000), (40, 40)])
@pytest.mark.parametrize("delta", [0.01, 0.05, 0.3])
def test_the_bound_is_the_beta_quantile(successes: int, n: int, delta: float) -> None:
    wanted = 1.0 if successes == n else float(beta.ppf(1 - delta, successes + 1, n - successes))
    assert clopper_pearson(successes, n, delta) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize(("successes", "n", "delta"), [(-1, 5, 0.1), (6, 5, 0.1), (0, 0, 0.1), (0, 5, 0.0), (0, 5, 1.0)])
def test_nonsense_has_no_bound(successes: int, n: int, delta: float) -> None:
    with pytest.raises(UsageError):
        clopper_pearson(successes, n, delta)


@pytest.mark.parametrize(
    ("n", "epsilon", "delta"), [(5000, 0.01, 0.05), (600, 0.03, 0.1), (50, 0.001, 0.05), (40, 0.5, 0.01), (3, 0.9, 0.95)]
)
def test_losses_allowed_are_those_whose_bound_fits(n: int, epsilon: float, delta: float) -> None:
    found = losses_allowed(n, epsilon, delta)
    assert found == sum(binom.cdf(k, n, epsilon) <= delta for k in range(n + 1)) - 1
    assert found < 0 or clopper_pearson(found, n, delta) <= epsilon + 1e-12
    assert clopper_pearson(found + 1, n, delta) > epsilon


@pytest.mark.parametrize("criterion", ["confidence", "margin", "entropy"])
def test_losses_at_every_threshold_are_those_counted_one_by_one(criterion: str) -> None:
    exits, final, labels = drawn(300, 5)
    exits[0, 7], exits[1, 8] = torch.nan, torch.nan
    scores = torch.stack([score(logits, criterion) for logits in exits])
    ladder = _ladder(criterion, 5)
    assert (ladder.diff() < 0).all()
    assert float(ladder[-1]) <= float(scores[scores.isfinite()].min())  # at the end everybody has left
    found = _losses(scores, ladder, exits, final, labels)
    for level in range(0, len(ladder), 83):
        where = leave(scores, [float(ladder[level])] * 2)
        answers = torch.cat((exits, final[None]))[where, torch.arange(300)].argmax(1)
        assert found[level] == int(((final.argmax(1) == labels) & (answers != labels)).sum())


def test_who_leaves_where() -> None:
    scores = torch.tensor([[0.9, 0.2, float("nan")], [0.1, 0.8, float("nan")]])
    assert leave(scores, [0.5, 0.5]).tolist() == [0, 1, 2]
    assert leave(scores, [None, None]).tolist() == [2, 2, 2]
    assert leave(scores, [None, 0.05]).tolist() == [1, 1, 2]


def drawn(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two exits and a final classifier that know more and more of the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 5, (n,), generator=generator)
    hard = torch.rand(n, generator=generator)
    answers = []
    for strength in (3.0, 5.0, 8.0):
        logits = torch.randn(n, 5, generator=generator)
        logits[torch.arange(n), labels] += strength * (1 - hard)
        answers.append(logits)
    stacked = torch.stack(answers)
    return stacked[:-1], stacked[-1], labels


def test_the_promise_is_kept() -> None:
    """Over many calibration sets, the risk on fresh images exceeds epsilon no more often than delta (10%, with room for chance)."""
    epsilon, delta = 0.03, 0.1
    exits, final, labels = drawn(40_000, 0)
    scores = torch.stack([score(logits, "confidence") for logits in exits])
    broken = 0
    for trial in range(40):
        found = risk_controlled(*drawn(600, trial + 1), criterion="confidence", epsilon=epsilon, delta=delta)
        assert found.bound <= epsilon
        where = leave(scores, [found.threshold] * 2)
        answers = torch.cat((exits, final[None]))[where, torch.arange(len(labels))].argmax(1)
        risk = float(((final.argmax(1) == labels) & (answers != labels)).float().mean())
        broken += risk > epsilon
    assert broken <= 8  # P(Binomial(40, 0.1) > 8) = 1.5%


def test_a_looser_promise_lets_more_leave() -> None:
    shares = [1 - risk_controlled(*drawn(2000, 1), criterion="margin", epsilon=e, delta=0.05).histogram[-1] for e in (0.01, 0.03, 0.1)]
    assert shares == sorted(shares)
    assert shares[-1] > shares[0]


def test_a_promise_nobody_can_keep_lets_nobody_leave() -> None:
    found = risk_controlled(*drawn(50, 1), criterion="confidence", epsilon=0.001, delta=0.05)
    assert found.threshold is None
    assert found.histogram == (0.0, 0.0, 1.0)


def test_a_budget_is_the_share_that_leaves() -> None:
    exits, _, _ = drawn(5000, 2)
    thresholds = quantile_thresholds(exits, 0.4)
    where = leave(torch.stack([score(logits, "confidence") for logits in exits]), thresholds)
    shares = (torch.bincount(where, minlength=3) / 5000).tolist()
    assert shares == pytest.approx([0.4, 0.24, 0.36], abs=0.002)


def test_buckets() -> None:
    assert [bucket(count, 64) for count in (0, 1, 2, 8, 9, 16, 17, 33, 49, 64)] == [0, 1, 8, 8, 16, 16, 32, 48, 64, 64]
    assert bucket(1, 1) == 1


@pytest.mark.parametrize("name", HEADS)
def test_heads_learn_and_read_their_image_alone(name: str) -> None:
    torch.manual_seed(0)
    head = build_head(name, width=32, classes=5, grid=(4, 4), prefix=2)
    tokens = torch.randn(6, 18, 32, requires_grad=True)
    logits = head(tokens)
    assert logits.shape == (6, 5)
    logits.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    head.eval()
    torch.testing.assert_close(torch.cat([head(image[None]) for image in tokens]), head(tokens), rtol=1e-4, atol=1e-5)


def test_cnn_heads_differ_in_the_class_token() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(1, 17, 32)
    other = tokens.clone()
    other[:, 0] += torch.randn(32)
    for name, reads in (("cnn-ignore", False), ("cnn-add", True), ("cnn-project", True), ("mlp", True), ("local", True)):
        head = build_head(name, width=32, classes=5, grid=(4, 4), prefix=1).eval()
        assert torch.equal(head(tokens), head(other)) is not reads, name


def test_an_unknown_design_names_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="cnn_add"):
        build_head("cnn_add", width=8, classes=2, grid=(2, 2), prefix=1)
