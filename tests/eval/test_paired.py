"""Paired scores: against closed forms, in streams, with identical pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.features import as_eight_bit
from vis_accel.eval.paired import PSNR_CAP, PairedMeter, local_lpips, ssim


def test_a_constant_difference_has_the_closed_form() -> None:
    meter = PairedMeter()
    meter.update(torch.full((4, 3, 16, 16), 100, dtype=torch.uint8), torch.full((4, 3, 16, 16), 110, dtype=torch.uint8))
    found = meter.result()
    assert found.psnr.value == pytest.approx(20 * torch.log10(torch.tensor(25.5)).item(), rel=1e-6)
    assert found.mae.value == pytest.approx(10 / 255, rel=1e-6)
    assert found.psnr.width == pytest.approx(0, abs=1e-9)
    assert (found.n, found.identical, found.lpips) == (4, 0, None)


def test_equal_images_are_counted_and_do_not_make_the_mean_infinite(make_images: Callable[..., Tensor]) -> None:
    images = as_eight_bit(make_images(6, 0))
    meter = PairedMeter()
    changed = images.clone()
    changed[4:] = (changed[4:] + 0.1).clamp(0, 1)
    meter.update(images, changed)
    meter.update(changed, changed)
    found = meter.result()
    assert (found.identical, found.n) == (10, 12)
    assert 20 < found.psnr.value < PSNR_CAP
    meter = PairedMeter()
    meter.update(images, images + 1e-4)  # the same picture once saved
    assert (meter.result().psnr.value, meter.result().identical) == (PSNR_CAP, 6)
    assert meter.result().ssim.value == pytest.approx(1)


def test_a_stream_and_merged_meters_give_what_one_batch_gives(make_images: Callable[..., Tensor]) -> None:
    a = make_images(30, 0)
    b = (a + 0.05 * torch.randn(a.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    whole, left, right = PairedMeter(), PairedMeter(), PairedMeter()
    whole.update(a, b)
    for x, y in zip(a[:14].split(5), b[:14].split(5), strict=True):
        left.update(x, (y * 255).round().to(torch.uint8))  # the two sides may come in different types
    right.update(a[14:], b[14:])
    left += right
    for name in ("psnr", "ssim", "mae"):
        ours, theirs = getattr(left.result(), name), getattr(whole.result(), name)
        assert (ours.value, ours.low, ours.n) == pytest.approx((theirs.value, theirs.low, theirs.n), rel=1e-5)


def test_ssim_per_image_averages_to_torchmetrics(make_images: Callable[..., Tensor]) -> None:
    from torchmetrics.functional.image import structural_similarity_index_measure

    a, b = as_eight_bit(make_images(5, 0)), as_eight_bit(make_images(5, 1))
    assert float(ssim(a, b).mean()) == pytest.approx(float(structural_similarity_index_measure(a, b, data_range=1.0)), rel=1e-5)  # type: ignore[arg-type]
    assert ssim(a[:1], b[:1]).shape == (1,)


def test_refusals(make_images: Callable[..., Tensor]) -> None:
    images = make_images(4, 0)
    with pytest.raises(DataError, match="one shape"):
        PairedMeter().update(images, images[:3])
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        PairedMeter().update(images, images * 2 - 1)
    with pytest.raises(UsageError, match="11 x 11"):
        PairedMeter().update(images[..., :8], images[..., :8])
    with pytest.raises(UsageError, match="at least 2"):
        PairedMeter().result()
    one = PairedMeter()
    one.update(images[:1], images[:1])
    with pytest.raises(UsageError, match="at least 2"):
        one.result()


def test_lpips_downloads_nothing_and_is_used_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_images: Callable[..., Tensor]
) -> None:
    import torchvision

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "download_url_to_file", forbidden)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert local_lpips("squeeze") is None
    (tmp_path / "checkpoints").mkdir()
    name = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rsplit("/", 1)[-1]
    torch.save(torchvision.models.squeezenet1_1(weights=None).state_dict(), tmp_path / "checkpoints" / name)
    score = local_lpips("squeeze")
    assert score is not None
    images = torch.nn.functional.interpolate(make_images(3, 0), size=(64, 64))
    meter = PairedMeter(lpips=score)
    meter.update(images, images.roll(1, dims=0))
    lpips = meter.result().lpips
    assert lpips is not None
    assert lpips.value > 0
    assert score(as_eight_bit(images), as_eight_bit(images)).abs().max() < 1e-6
    with pytest.raises(UsageError, match="same scores"):
        meter += scored_without(images)


def scored_without(images: Tensor) -> PairedMeter:
    meter = PairedMeter()
    meter.update(images, images)
    return meter
