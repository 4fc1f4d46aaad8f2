"""A search for a window on the stand-in model: it tries what can differ, keeps the best, and judges it on seeds of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.generation import Job
from vis_accel.guidance.window import GuidanceWindow
from vis_accel.guidance_search import FoundWindow, search_window
from vis_accel.recipe import Recipe
from vis_accel.schedule_search import SEEDS_APART

pytestmark = pytest.mark.usefixtures("standin")


def test_it_tries_every_edge_and_keeps_the_best(tmp_path: Path) -> None:
    said: list[str] = []
    found = search_window("cifar10-dit", "euler(steps=3)", images=100, progress=said.append)
    tops = [one for one in found.tried if one.lo == 0]
    lows = [one for one in found.tried if one.lo > 0]
    assert [one.nfe for one in tops] == [6, 5, 4]  # three calls, of which three, two, one are guided
    top = min(tops, key=lambda one: one.kid)
    assert all(one.hi == top.hi and (top.hi is None or one.lo < top.hi) for one in lows)
    assert len(lows) == {None: 2, tops[1].hi: 1, tops[2].hi: 0}[top.hi]
    best = min(found.tried, key=lambda one: one.kid)
    methods = Recipe.parse(found.recipe).methods
    assert str(methods[-1]) == "euler(steps=3)"
    if len(methods) == 2:
        assert methods[0] == GuidanceWindow(lo=best.lo, hi=best.hi)
    else:
        assert (best.lo, best.hi) == (0, None)
    assert [(one.lo, one.hi) for one in found.fresh] == [(best.lo, best.hi), (0.0, None)]
    assert found.fresh[1].scores != tops[0].scores
    assert found.settings["job"]["seed"] == SEEDS_APART
    assert len(said) == len(found.tried) + 2
    found.save(tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["recipe"] == found.recipe


@pytest.mark.parametrize(("interval", "word"), [((-2, -3, -1), "nearer"), ((2, 1, 3), "farther"), ((1, -1, 3), "not distinguishable")])
def test_the_verdict_is_the_intervals(interval: tuple[float, float, float], word: str) -> None:
    fresh: Any = ()
    assert FoundWindow("m", "", "", (), fresh, interval, {"images": 100}).verdict().startswith(word)


def test_what_cannot_be_searched_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="at least 100"):
        search_window("cifar10-dit", images=50)
    for text in ("guidance-reuse", "guidance-reuse + dpm(steps=3)"):
        with pytest.raises(UsageError, match="one sampler"):
            search_window("cifar10-dit", text, images=100)
    with pytest.raises(UsageError, match="Guidance is off"):
        search_window("cifar10-dit", "euler(steps=2)", images=100, job=Job(guidance_scale=1.0))
    import diffusers

    pixels = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), norm_num_groups=4
    )
    pipe: Any = diffusers.DDPMPipeline(pixels, diffusers.DDPMScheduler())
    with pytest.raises(UsageError, match="no real images"):
        search_window(pipe, images=100)
    real = Path("real")
    real.mkdir()
    from PIL import Image

    for i in range(100):
        picture = torch.randint(0, 256, (32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        Image.fromarray(picture.numpy()).save(real / f"{i}.png")
    with pytest.raises(NotApplicableError, match="no call of it stacks"):
        search_window(pipe, images=100, reference="real")
