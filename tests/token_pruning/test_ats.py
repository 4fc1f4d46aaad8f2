"""ATS: the sampling against a loop, a batch against its images, and never more patches than points."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from vit_models.families import images, tiny

from vis_accel.apply import accelerate
from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.token_pruning.ats import sampled, significance


def by_hand(scores: Tensor, count: int) -> set[int]:
    """Inverse transform of the cumulative scores, rising, at (2k - 1) / 2K."""
    order = sorted(range(len(scores)), key=lambda index: float(scores[index]))
    total, hit = float(scores.sum()), set()
    for k in range(1, count + 1):
        point, reached = (2 * k - 1) / (2 * count), 0.0
        for index in order:
            reached += float(scores[index]) / total
            if reached >= point:
                hit.add(index)
                break
    return hit


@pytest.mark.parametrize("count", [1, 5, 16, 40])
def test_sampling_is_that_of_the_loop(count: int) -> None:
    scores = torch.rand(6, 16, generator=torch.Generator().manual_seed(count), dtype=torch.float64) ** 3
    found = sampled(scores, count)
    for row, chosen in zip(scores, found, strict=True):
        assert set(chosen.nonzero()[:, 0].tolist()) == by_hand(row, count)
    assert bool(((found.sum(1) >= 1) & (found.sum(1) <= min(count, 16))).all())


def test_one_loud_patch_is_taken_once_and_even_ones_all() -> None:
    loud = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    assert sampled(loud, 4).tolist() == [[False, False, True, False]]
    assert bool(sampled(torch.full((1, 8), 0.25), 8).all())


def test_where_nothing_can_be_said_all_stay_but_padding() -> None:
    there = torch.tensor([[True, True, False], [True, True, False]])
    found = sampled(torch.tensor([[float("nan"), 1.0, 0.0], [0.0, 0.0, 0.0]]), 2, there)
    assert torch.equal(found, there)


def test_significance_is_attention_times_the_norm_of_the_value() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 5, 4, generator=generator) for _ in range(3))
    found = significance(q, k, v, rows=1, scale=0.5)
    wanted = torch.zeros(2, 5)
    for image in range(2):
        for head in range(3):
            attention = (q[image, head, 0] @ k[image, head].T * 0.5).softmax(0)
            wanted[image] += attention * v[image, head].norm(dim=1)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("family", ["plain", "distilled", "dinov2", "eva-token"])
@torch.no_grad()
def test_a_batch_is_its_images_one_by_one(family: str) -> None:
    """Images keep different numbers of patches, so the batch is padded."""
    model, pictures = tiny(family), images(6)
    with accelerate(model, "ats(tokens=9)") as handle:
        whole = model(pictures)
        single = torch.cat([model(picture[None]) for picture in pictures])
        assert handle.report(), "counts are reported"
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-4)
    assert (whole - model(pictures)).abs().max() > 1e-3, "patches were dropped"


@torch.no_grad()
def test_a_stage_keeps_no_more_than_its_points() -> None:
    model = tiny("plain")
    with accelerate(model, "ats(tokens=3, stages=(1, 2))") as handle:
        model(images(4))
        report = handle.report()
    means = [float(str(value).split()[0]) for value in report.values()]
    assert len(means) == 2
    assert all(1 <= mean <= 3 for mean in means)
    assert means[1] <= means[0]


@torch.no_grad()
def test_the_order_of_images_is_kept_and_a_broken_one_shows_alone() -> None:
    model, pictures = tiny("plain"), images(4)
    with accelerate(model, "ats(tokens=5)"):
        plain, turned = model(pictures), model(pictures.flip(0)).flip(0)
        pictures[2] = float("nan")
        broken = model(pictures)
    torch.testing.assert_close(plain, turned, rtol=1e-4, atol=1e-4)
    assert bool(broken[2].isnan().all())
    torch.testing.assert_close(broken[[0, 1, 3]], plain[[0, 1, 3]], rtol=1e-4, atol=1e-4)


def test_what_is_refused() -> None:
    with pytest.raises(NotApplicableError, match="class token"):
        accelerate(tiny("average"), "ats")
    with pytest.raises(UsageError, match="block"):
        accelerate(tiny("plain"), "ats(stages=(7,))")
    for wrong in ("ats(tokens=0)", "ats(stages=(2, 1))", "ats(stages=())"):
        with pytest.raises(UsageError):
            accelerate(tiny("plain"), wrong)
