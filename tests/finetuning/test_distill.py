"""Distances from a teacher by values worked out by hand; teachers that do not fit."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import timm
import torch

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.finetuning.distill import feature_distance, open_teacher, softened_distance, token_distance
from vis_accel.finetuning.options import FinetuneOptions
from vis_accel.finetuning.run import finetune
from vis_accel.finetuning.student import Student
from vis_accel.zoo import timm_folder


def test_softened_distance_by_hand() -> None:
    """Teacher log 4 and 0 at temperature 2: probabilities 2/3 and 1/3; student even: T^2 (2/3 log(4/3) + 1/3 log(2/3))."""
    teacher, student = torch.tensor([[math.log(4), 0.0]]), torch.zeros(1, 2)
    expected = 4 * (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3))
    assert softened_distance(student, teacher, 2.0).item() == pytest.approx(expected, rel=1e-5)
    assert softened_distance(teacher + 3, teacher, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_token_distance_by_hand() -> None:
    """The teacher decides for class 1, to which the student gives 3/4."""
    student, teacher = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[-1.0, 5.0]])
    assert token_distance(student, teacher, None).item() == pytest.approx(-math.log(0.75), rel=1e-5)
    assert token_distance(student, teacher, 1.0).item() == pytest.approx(softened_distance(student, teacher, 1.0).item())


def test_feature_distance_by_hand() -> None:
    """Features 1 and 3 are -1 and 1 when normalised: squares 1 and 4 away from the student's 0 and 3."""
    found = feature_distance(torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 3.0]]))
    assert found.item() == pytest.approx((1 + 4) / 2, rel=1e-4)


def test_a_teacher_sees_images_at_its_own_size_and_learns_nothing() -> None:
    teacher = open_teacher("cifar10-features", kind="feature", classes=("blue", "red"))
    images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    smaller = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(teacher.logits(images), teacher.logits(smaller))
    assert teacher.features(images).shape == (2, 64)
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_a_teacher_of_other_classes_is_refused() -> None:
    with pytest.raises(UsageError, match="knows 10 classes and the data have 2"):
        open_teacher("cifar10-features", kind="logit", classes=("blue", "red"))
    others = tuple(f"class{index}" for index in range(10))
    with pytest.raises(UsageError, match="airplane in the place of class0"):
        open_teacher("cifar10-vit", kind="logit", classes=others)


def test_token_distillation_wants_a_second_head() -> None:
    with pytest.raises(NotApplicableError, match="VisionTransformer has no second head"):
        Student(timm.create_model("test_vit", num_classes=2, img_size=32), distill="token")


def test_token_distillation_gives_both_heads_in_training_and_their_mean_otherwise() -> None:
    network = timm.create_model("levit_128s", num_classes=2, img_size=64)
    student = Student(network, distill="token")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    found = student.train()(images)
    assert found.token is not None
    assert not torch.equal(found.logits, found.token)
    student.eval()
    pooled = network.forward_head(network.forward_features(images), pre_logits=True)
    torch.testing.assert_close(student(images).logits, (network.head(pooled) + network.head_dist(pooled)) / 2)


def test_feature_distillation_leaves_no_trace_in_the_network(options: Callable[..., FinetuneOptions]) -> None:
    done = finetune(options(teacher="cifar10-features", distill="feature", steps=2))
    assert done.card["parameters"]["all"] == done.card["parameters"]["trained"]  # the map to the teacher's features is not kept
    assert set(timm_folder.load(done.folder).state_dict()) == set(timm.create_model("test_vit", num_classes=2, img_size=32).state_dict())
