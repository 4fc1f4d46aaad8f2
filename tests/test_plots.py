"""The picture of a card: strips are the images themselves, and every kind of card can be drawn."""

from __future__ import annotations

from pathlib import Path

import numpy
import torch
from PIL import Image

from vis_accel.plots import draw_card, save_strip
from vis_accel.record import Card, Quantity, Record, Speed


def row(name: str, speed: float | None, fid: float | None) -> Record:
    return Record(
        recipe=name, recipe_form={"methods": []}, exactness="approximate", model="m", model_hash="0" * 64, data="d", seeds="0..9", n=10,
        quality={} if fid is None else {"FID[x]": Quantity(value=fid, low=fid - 1, high=fid + 1, higher_is_better=False)},
        speed=None if speed is None else Speed(images_per_second=Quantity(value=speed)), counters={"calls": 10},
    )  # fmt: skip


def test_a_strip_holds_the_images_side_by_side(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    with Image.open(save_strip(images, tmp_path, "dpm(steps=10)")) as strip:
        pixels = torch.from_numpy(numpy.array(strip)).permute(2, 0, 1)
    assert pixels.shape == (3, 8, 26)
    for index, image in enumerate(images):
        assert torch.equal(pixels[:, :, 9 * index : 9 * index + 8], image)


def test_large_images_are_kept_small(tmp_path: Path) -> None:
    with Image.open(save_strip(torch.zeros(2, 3, 512, 512, dtype=torch.uint8), tmp_path, "x")) as strip:
        assert strip.height == 256


def test_cards_with_and_without_scores_are_drawn(tmp_path: Path) -> None:
    save_strip(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), tmp_path, "stock")
    scored = Card(
        title="a _card_ with $marks$", baseline=row("stock", 5.0, 20.0), records=(row("dpm", 25.0, 21.0),), reference={"floor": 3.0}
    )
    plain = Card(title="nothing to compare", baseline=row("stock", None, None))
    sizes = []
    for card in (scored, plain):
        with Image.open(draw_card(card, tmp_path)) as picture:
            sizes.append(picture.size)
            assert len(picture.convert("RGB").getcolors(2**24) or []) > 20
    assert sizes[0][0] == sizes[1][0] == 1440
