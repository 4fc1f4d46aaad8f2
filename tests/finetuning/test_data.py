"""Folders: what is refused and how it is named; images from memory and from the disk are the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vis_accel.errors import DataError, UsageError
from vis_accel.finetuning.augment import augmented, mixed
from vis_accel.finetuning.data import scan
from vis_accel.finetuning.options import FinetuneOptions
from vis_accel.finetuning.pixels import Pixels, headers, read_image, stored_side
from vis_accel.finetuning.run import finetune

Draw = Callable[..., None]


@pytest.fixture
def folder(images: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(images, tmp_path / "data"))


def test_classes_are_the_folders_in_order_and_test_serves_as_validation(images: Path) -> None:
    found = scan(images)
    assert found.classes == ("blue", "red")
    assert found.train.labels == (0,) * 12 + (1,) * 12
    assert (found.validation.name, len(found.validation), found.test) == ("test", 8, None)


def test_a_share_sets_the_last_images_of_each_class_aside(images: Path) -> None:
    found = scan(images, validation_share=0.25)
    assert [path.name for path in found.validation.paths] == ["009.png", "010.png", "011.png"] * 2
    assert not set(found.train.paths) & set(found.validation.paths)
    assert found.test is not None
    assert (len(found.train), len(found.test)) == (18, 8)
    with pytest.raises(UsageError, match="sets aside 0 of the 12 images of blue"):
        scan(images, validation_share=0.01)


def test_a_share_beside_val_is_refused(folder: Path) -> None:
    shutil.copytree(folder / "test", folder / "val")
    with pytest.raises(UsageError, match="would set aside a second one"):
        scan(folder, validation_share=0.25)


def test_parts_of_different_classes_are_refused_by_name(folder: Path) -> None:
    shutil.copytree(folder / "test" / "red", folder / "test" / "green")
    with pytest.raises(DataError, match=r"test has 3 classes and .*train has 2; only test has green"):
        scan(folder)
    shutil.rmtree(folder / "test" / "green")
    shutil.rmtree(folder / "test" / "red")
    with pytest.raises(DataError, match="test lacks red"):
        scan(folder)


def test_empty_and_missing_folders_are_refused(folder: Path) -> None:
    for path in (folder / "train" / "red").iterdir():
        path.unlink()
    with pytest.raises(DataError, match=r"red is empty: it has no file ending in \.jpg"):
        scan(folder)
    shutil.rmtree(folder / "train" / "red")
    with pytest.raises(DataError, match="has one class, blue"):
        scan(folder)
    with pytest.raises(DataError, match="There is no folder"):
        scan(folder / "test")


def test_broken_images_are_counted_and_named_and_skipped_only_when_asked(folder: Path, options: Callable[..., FinetuneOptions]) -> None:
    whole = (folder / "train" / "red" / "003.png").read_bytes()
    (folder / "train" / "red" / "003.png").write_bytes(whole[: len(whole) // 2])  # its header is fine, the rest is missing
    (folder / "train" / "blue" / "001.png").write_text("no image")
    part = scan(folder).train
    assert [path.name for path, _ in headers(part)[1]] == ["001.png"]
    assert [path.name for path, _ in Pixels(part, 8).broken] == ["001.png", "003.png"]
    with pytest.raises(DataError, match=r"2 of 32 images do not open: .*blue/001\.png .*red/003\.png") as caught:
        finetune(options(data=folder))
    assert "--skip-broken" in str(caught.value.hint)
    lines: list[str] = []
    done = finetune(options(data=folder, skip_broken=True, steps=1), report=lines.append)
    assert (done.card["data"]["skipped"], done.card["data"]["train"]) == (2, 22)
    assert any("left out 2 images" in line for line in lines)
    for path in (folder / "test" / "red").iterdir():
        path.write_text("no image")
    with pytest.raises(DataError, match="No image of red in test opens"):
        finetune(options(data=folder, skip_broken=True, output=folder / "again"))


def test_images_from_memory_and_from_the_disk_are_the_same_bits(images: Path) -> None:
    part = scan(images).train
    memory, disk = Pixels(part, 24, workers=2), Pixels(part, 24, workers=2, memory=0)
    assert memory.stored is not None
    assert disk.stored is None
    indices = torch.tensor([5, 0, 23])
    disk.prefetch(indices)
    assert torch.equal(memory.batch(indices), disk.batch(indices))
    assert torch.equal(memory.batch(indices[1:]), disk.batch(indices[1:]))  # another batch than was fetched ahead
    assert memory.batch(indices).shape == (3, 3, 24, 24)


def test_equal_small_squares_are_kept_at_their_own_size(images: Path, folder: Path, draw: Draw) -> None:
    sizes, _ = headers(scan(images).train)
    assert stored_side(sizes, 64, room=1.15) == 32
    assert stored_side(sizes, 16, room=1.25) == 20
    draw(folder / "train", 1, side=40)  # another size among them
    sizes, _ = headers(scan(folder).train)
    assert sizes == {(32, 32), (40, 40)}
    assert stored_side(sizes, 64, room=1.25) == 80


def test_images_lie_as_their_exif_tag_says(tmp_path: Path) -> None:
    from PIL import Image

    image = Image.new("RGB", (16, 16))
    image.paste((255, 255, 255), (0, 0, 16, 8))  # the upper half is white
    exif = Image.Exif()
    exif[274] = 3  # turned by 180 degrees
    image.save(tmp_path / "turned.png", exif=exif)
    read = read_image(tmp_path / "turned.png", 16)
    assert int(read[:, :8].max()) == 0
    assert int(read[:, 8:].min()) == 255


@pytest.mark.parametrize("strength", ["light", "full"])
def test_augmented_images_follow_the_generator_and_stay_in_range(images: Path, strength: str) -> None:
    pixels = Pixels(scan(images).train, 32).batch(torch.arange(8))

    def draw(seed: int) -> torch.Tensor:
        return augmented(pixels, 24, strength, torch.Generator().manual_seed(seed))

    assert draw(1).shape == (8, 3, 24, 24)
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert 0 <= float(draw(1).min()) < float(draw(1).max()) <= 1


def test_mixed_images_and_targets_are_mixed_alike() -> None:
    targets = torch.eye(4)
    images = targets[:, :, None, None].expand(4, 4, 2, 2).contiguous()  # an image shows its own target
    found, labels = mixed(images, targets, 1.0, torch.Generator().manual_seed(3))
    torch.testing.assert_close(found[:, :, 0, 0], labels)
    torch.testing.assert_close(labels.sum(dim=1), torch.ones(4))
    assert ((labels > 0) & (labels < 1)).any()
