"""Labelled images: the order, the preparation, and every way a folder can be wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image

from vis_accel.errors import DataError, UsageError
from vis_accel.zoo import describe, load
from vis_accel.zoo.labelled import Preparation, Prepared, bundled_images, folder_images, pack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 3, 2 and 1 images of one colour each."""
    for label, name in enumerate(("ant", "bee", "cow")):
        (tmp_path / "val" / name).mkdir(parents=True)
        for index in range(3 - label):
            Image.new("RGB", (40, 30), (80 * label, 60 * index, 7)).save(tmp_path / "val" / name / f"{index}.png")
    return tmp_path


def preparation() -> Preparation:
    return Preparation.of(timm.create_model("test_vit", num_classes=3, img_size=32), 32)


def test_classes_take_turns_so_that_any_n_is_spread_evenly(folder: Path) -> None:
    images = folder_images(folder, 3)
    assert images.classes == ("ant", "bee", "cow")
    assert images.labels == (0, 1, 2, 0, 1, 0)
    assert images.first(3).labels == (0, 1, 2)
    assert images.place(3).endswith("ant/1.png")
    with pytest.raises(UsageError, match="6 images; 7 were asked for"):
        images.first(7)


def test_a_folder_of_classes_will_do_and_a_known_order_of_names_wins(folder: Path) -> None:
    images = folder_images(folder / "val", 3, ("cow", "ant", "bee"))
    assert images.classes == ("cow", "ant", "bee")
    assert images.place(0).endswith("cow/0.png")
    assert images.labels[:3] == (0, 1, 2)


def test_images_are_prepared_as_timm_would(folder: Path) -> None:
    network = timm.create_model("test_vit", num_classes=3)
    mine = Preparation.of(network)
    prepared = Prepared(folder_images(folder, 3), mine)
    assert prepared.pixels(0, 2).shape == (2, 3, 160, 160)
    assert prepared.pixels(0, 2).dtype == torch.uint8
    config = timm.data.resolve_data_config({}, model=network)
    theirs = timm.data.create_transform(**config, is_training=False)
    with Image.open(folder / "val" / "bee" / "0.png") as image:
        expected = theirs(image.convert("RGB"))
    torch.testing.assert_close(mine.normalised(prepared.pixels(1, 2), torch.empty(1))[0], expected, atol=1e-6, rtol=0)
    assert prepared.labels.tolist() == [0, 1, 2, 0, 1, 0]


def test_images_beyond_the_memory_are_prepared_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vis_accel.zoo import labelled

    images = folder_images(folder, 3)
    whole = Prepared(images, preparation()).pixels(0, 6)
    monkeypatch.setattr(labelled, "_KEPT_BYTES", 2 * 3 * 32 * 32)
    again = Prepared(images, preparation())
    assert len(again._kept) == 2
    assert torch.equal(again.pixels(0, 6), whole)


def test_a_broken_image_is_named_or_on_request_left_out_and_counted(folder: Path) -> None:
    (folder / "val" / "bee" / "0.png").write_bytes(b"no image")
    images = folder_images(folder, 3)
    with pytest.raises(DataError, match=r"bee/0\.png does not open") as error:
        Prepared(images, preparation())
    assert "--skip-broken" in str(error.value)
    prepared = Prepared(images, preparation(), skip_broken=True)
    assert prepared.labels.tolist() == [0, 2, 0, 1, 0]
    assert len(prepared) == len(prepared.pixels(0, 6)) == 5
    assert len(prepared.broken) == 1
    assert "without 1 of 6" in prepared.name
    for path in (folder / "val").rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="None of the 6 images"):
        Prepared(images, preparation(), skip_broken=True)


def test_folders_that_cannot_be_are_refused_with_the_reason(folder: Path) -> None:
    with pytest.raises(DataError, match=r"3 class folders .*tells 10 classes"):
        folder_images(folder, 10)
    with pytest.raises(DataError, match="lacks the classes 'dog'"):
        folder_images(folder, 3, ("ant", "bee", "dog"))
    with pytest.raises(DataError, match="holds no folder of a class"):
        folder_images(folder / "val" / "ant", 3)
    with pytest.raises(DataError, match="Cannot read"):
        folder_images(folder / "nowhere", 3)
    (folder / "val" / "cow" / "0.png").unlink()
    with pytest.raises(DataError, match="cow holds no images"):
        folder_images(folder, 3)


def test_the_images_that_ship_are_whole_files_evenly_over_the_classes() -> None:
    images = bundled_images("cifar10-vit")
    assert images is not None
    assert set(Counter(images.labels).values()) == {50}
    assert images.classes == describe("cifar10-vit").classes
    assert images.labels[:10] == tuple(range(10))
    assert images.read(499).startswith(b"\xff\xd8")
    prepared = Prepared(images.first(10), Preparation.of(load("cifar10-vit")))
    assert prepared.pixels(0, 10).shape == (10, 3, 32, 32)
    assert bundled_images("cifar10-dit") is None
    assert bundled_images("timm/deit_tiny_patch16_224") is None


def test_what_is_packed_is_what_was_read(folder: Path) -> None:
    from safetensors.torch import load_file

    images = folder_images(folder, 3)
    pack(images, folder / "packed.safetensors")
    stored = load_file(folder / "packed.safetensors")
    starts = [0, *stored["ends"].tolist()[:-1]]
    files = [stored["bytes"][a:b].numpy().tobytes() for a, b in zip(starts, stored["ends"].tolist(), strict=True)]
    assert files == [images.read(index) for index in range(6)]
    assert tuple(stored["labels"].tolist()) == images.labels
