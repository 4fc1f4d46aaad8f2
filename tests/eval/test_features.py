"""The feature network's wrapper: range, rounding, resizing, mode, identity; and that images are not kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from vis_accel.errors import DataError, UsageError
from vis_accel.eval.features import FeatureNet, as_eight_bit, digest, extract


class Echo(nn.Module):
    """Mean of each channel, and the height it saw, so that preparation can be read off the features."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(dim=(2, 3)), x.new_full((len(x), 1), float(x.shape[2]))], dim=1)


def echo(**options: object) -> FeatureNet:
    return FeatureNet(Echo(), name="echo", num_features=4, **options)  # type: ignore[arg-type]


def test_eight_bit_and_float_images_are_the_same_images() -> None:
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(as_eight_bit(images), as_eight_bit(images.float() / 255))
    for off in (0.4 * (images < 255), -0.4 * (images > 0)):  # rounds, does not truncate
        assert torch.equal(as_eight_bit(images), as_eight_bit((images + off) / 255))
    assert torch.equal(as_eight_bit(torch.full((1, 3, 2, 2), 1.1)), torch.ones(1, 3, 2, 2))  # overshoot is clamped, not wrapped


@pytest.mark.parametrize("bad", [torch.full((1, 3, 2, 2), -1.0), torch.full((1, 3, 2, 2), 255.0), torch.full((1, 3, 2, 2), float("nan"))])
def test_images_of_another_range_are_refused(bad: Tensor) -> None:
    with pytest.raises(DataError, match=r"\[0, 1\]"):
        as_eight_bit(bad)


def test_images_of_another_shape_or_type_are_refused() -> None:
    with pytest.raises(DataError, match="B x C x H x W"):
        as_eight_bit(torch.zeros(3, 8, 8))
    with pytest.raises(DataError, match="int64"):
        as_eight_bit(torch.zeros(1, 3, 8, 8, dtype=torch.int64))


def test_images_are_resized_and_normalised() -> None:
    image = torch.full((1, 3, 8, 8), 51, dtype=torch.uint8)  # 0.2
    assert echo()(image)[0].tolist() == pytest.approx([0.2, 0.2, 0.2, 8])
    assert echo(size=(16, 16))(image)[0, 3] == 16
    assert echo(mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))(image)[0, :3].tolist() == pytest.approx([0.2, 0, -0.2], abs=1e-6)


def test_resizing_down_is_antialiased() -> None:
    stripes = torch.tensor([0, 255, 255, 0], dtype=torch.uint8).repeat(8).expand(1, 3, 32, 32)
    seen = []

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.mean(dim=(2, 3))

    FeatureNet(Look(), name="look", num_features=3, size=(8, 8))(stripes)
    assert seen[0].mean() == pytest.approx(0.5, abs=0.05)  # without antialiasing only the two middle pixels of every four count: 1


def test_it_stays_in_evaluation_mode_and_builds_no_graph() -> None:
    inner = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4))
    wrapped = FeatureNet(inner, name="drop", num_features=4)
    wrapped.train()
    assert not wrapped.training
    inner.train()
    image = torch.rand(1, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert torch.equal(wrapped(image), wrapped(image))
    assert not wrapped(image).requires_grad
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(wrapped(image), wrapped(image).float())
        inside = wrapped(image)
    assert torch.equal(inside, wrapped(image))
    assert torch.equal(inside, inner(as_eight_bit(image)))  # in full precision, and in evaluation mode, where it was put


def test_a_wrong_number_of_features_is_refused(net: FeatureNet) -> None:
    wrong = FeatureNet(net.net, name="wrong", num_features=17)
    with pytest.raises(UsageError, match="17 features"):
        wrong(torch.zeros(2, 3, 16, 16))
    with pytest.raises(UsageError, match="bfloat16"):
        FeatureNet(nn.Linear(2, 2).bfloat16(), name="half", num_features=2)
    with pytest.raises(UsageError, match="forward_features"):
        FeatureNet(nn.Linear(2, 2), name="x", num_features=2, entry="forward_features")


def test_features_that_are_not_finite_are_named(make_images: Callable[..., Tensor]) -> None:
    broken = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    nn.init.constant_(broken[1].weight, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="broken gave features that are not finite"):
        FeatureNet(broken, name="broken", num_features=4)(make_images(2, 0))


def test_the_hash_knows_weights_and_preparation() -> None:
    def build(shift: float = 0.0, **options: object) -> str:
        linear = nn.Linear(3, 4)
        nn.init.constant_(linear.weight, 0.5 + shift)
        nn.init.zeros_(linear.bias)
        return FeatureNet(linear, name="x", num_features=4, **options).sha256  # type: ignore[arg-type]

    assert build() == build()
    different = {build(), build(1e-7), build(size=(8, 8)), build(mean=(0.5,), std=(0.5,))}
    assert len(different) == 4
    assert len(digest(nn.BatchNorm2d(3))) == 64  # a scalar buffer among the tensors


def test_features_come_in_order_and_images_are_not_kept(net: FeatureNet, make_images: Callable[..., Tensor]) -> None:
    images = make_images(60, 0)
    alive: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Tensor]:
        for part in images.split(16):
            batch = part.clone()
            alive.append(weakref.ref(batch))
            yield batch
            del batch
            assert sum(ref() is not None for ref in alive) <= 1, "extract still holds an image batch"

    features = extract(net, batches())
    assert features.shape == (60, 16)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, net(images), rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="no images"):
        extract(net, [])
