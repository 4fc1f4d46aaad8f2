"""Shares of right predictions with Wilson's interval."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.accuracy import agreement, class_agreement, predict, top1, wilson


def test_wilson_is_the_printed_example() -> None:
    """Newcombe 1998 (Statistics in Medicine 17:857), table I, method 3: 81/263, 15/148, 0/20, 1/29."""
    for successes, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        interval = wilson(successes, n)
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)
        assert interval.value in interval
    assert wilson(20, 20).high == 1.0
    assert wilson(0, 20).low == 0.0
    with pytest.raises(UsageError):
        wilson(3, 2)


def test_top1_of_logits_and_of_predictions() -> None:
    labels = torch.tensor([0, 1, 2, 1])
    logits = torch.eye(3)[torch.tensor([0, 1, 2, 0])]
    assert top1(logits, labels).value == 0.75
    assert top1(logits.argmax(1), labels).value == 0.75
    assert agreement(logits, logits * 2).value == 1.0
    assert top1(logits, labels).n == 4


def test_broken_predictions_are_refused() -> None:
    labels = torch.tensor([0, 1])
    for bad in (torch.full((2, 3), float("nan")), torch.zeros(3, dtype=torch.int64), torch.zeros(2), torch.zeros(2, 3, 4)):
        with pytest.raises(DataError):
            top1(bad, labels)
    with pytest.raises(DataError):
        top1(labels[:0], labels[:0])


class Brightest(nn.Module):
    """Class: the channel with most light. In training mode always wrong."""

    def forward(self, x: Tensor) -> Tensor:
        logits = x.mean(dim=(2, 3))
        return -logits if self.training else logits


def test_generated_images_agree_with_their_class() -> None:
    labels = torch.arange(9) % 3
    images = torch.nn.functional.one_hot(labels, 3).float()[:, :, None, None].expand(9, 3, 4, 4) * 0.9
    classifier = nn.Sequential(Brightest())
    classifier.train()
    assert class_agreement(classifier, images.split(4), labels).value == 1.0
    assert classifier.training
    assert classifier[0].training  # its mode is put back
    assert torch.equal(predict(classifier, [(images * 255).to(torch.uint8)]), labels)
    assert class_agreement(classifier, images.split(4), (labels + 1) % 3).value == 0.0
    with pytest.raises(DataError, match="9 and 8"):
        class_agreement(classifier, images.split(4), labels[:8])
    with pytest.raises(DataError, match="no images"):
        predict(classifier, [])
