"""Pictures and comparisons without a page: the same as the library's, stopped in time, never mixed up."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

import torch
from torch import Tensor

from vis_accel import cli
from vis_accel.app import making, reproduce, worker
from vis_accel.app.catalog import Catalog
from vis_accel.app.pictures import data_uri, difference, sheet, tiles
from vis_accel.app.requests import CompareRequest, GenerateRequest, read
from vis_accel.app.worker import Stopped, Task, Worker
from vis_accel.apply import accelerate
from vis_accel.generation import generate


def made(catalog: Catalog, **values: object) -> making.Made:
    request = read(GenerateRequest, catalog, **{"model": "cifar10-dit", "count": 2, "recipe": "dpm(steps=4)", **values})
    task = making.start_generate(request, catalog)
    for _ in task.follow():
        pass
    found: making.Made = task.result
    return found


def test_the_pictures_are_the_librarys_own(catalog: Catalog) -> None:
    found = made(catalog, seed=5, classes=[3, 5])
    model = catalog.get("cifar10-dit")
    job = read(GenerateRequest, catalog, model="cifar10-dit", seed=5, classes=[3, 5]).job(catalog)
    with accelerate(model.target, "dpm(steps=4)"):
        assert torch.equal(found.pictures, generate(model.target, job, range(2)))
    assert (found.calls, found.nfe) == (4, 8.0)
    assert found.seconds > 0


def test_a_model_without_classes_makes_pictures_too(catalog: Catalog) -> None:
    found = made(catalog, model="cifar10-unet", recipe="unipc(steps=3)")
    assert found.pictures.shape == (2, 3, 32, 32)
    assert (found.calls, found.nfe) == (3, 3.0)


def test_pictures_become_clear_while_they_are_made(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vis_accel.app.watching._PREVIEW_PERIOD", 0.0)
    monkeypatch.setattr(worker, "PERIOD", 0.001)
    request = read(GenerateRequest, catalog, model="cifar10-dit", count=2, recipe="dpm(steps=12)")
    task = making.start_generate(request, catalog)
    seen = [update for update in task.follow() if update is not None and update.pictures is not None]
    assert len(seen) >= 2
    assert {update.total for update in seen} == {12}

    def far(pictures: Tensor) -> float:
        return float((pictures.float() - task.result.pictures.float()).abs().mean())

    assert far(seen[-1].pictures) < far(seen[0].pictures)


def test_requests_that_conflict_never_meet(catalog: Catalog) -> None:
    """Each of many at once gets what it would have got alone, bit for bit."""
    wanted = ["dpm(steps=4)", "none", "heun(steps=2)", "unipc(steps=3)"]
    alone = {recipe: made(catalog, recipe=recipe, steps=5).pictures for recipe in wanted}
    together: list[tuple[str, Tensor]] = []

    def ask(recipe: str) -> None:
        together.append((recipe, made(catalog, recipe=recipe, steps=5).pictures))

    threads = [threading.Thread(target=ask, args=(recipe,)) for recipe in wanted * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == len(threads)
    assert [recipe for recipe, pictures in together if not torch.equal(pictures, alone[recipe])] == []


def test_closing_the_follower_stops_the_work_at_the_next_call(catalog: Catalog) -> None:
    task = making.start_generate(read(GenerateRequest, catalog, model="cifar10-dit", count=8, recipe="none"), catalog)
    follower = task.follow()
    while (update := next(follower)) is None or update.done < 1:
        pass
    follower.close()
    start = time.perf_counter()
    assert task.done.wait(10)
    assert time.perf_counter() - start < 3
    assert isinstance(task.error, Stopped)
    model = catalog.get("cifar10-dit")
    assert "step" not in vars(model.target.scheduler)
    assert not model.view.denoiser._forward_pre_hooks


def test_work_that_nobody_follows_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PATIENCE", 0.1)

    def long(task: Task) -> None:
        while True:
            task.check()
            time.sleep(0.01)

    task = Worker("test").start(long)
    assert task.done.wait(5)
    assert isinstance(task.error, Stopped)


def test_prepared_recipes_are_kept_and_the_oldest_makes_room(catalog: Catalog) -> None:
    variants = catalog.get("cifar10-dit").variants
    recipes = [read(GenerateRequest, catalog, model="cifar10-dit", recipe=f"ddim(steps={n})") for n in range(1, 12)]
    for request in recipes:
        made(catalog, recipe=request.recipe, count=1)
    assert len(variants) == variants.limit
    from vis_accel.recipe import Recipe

    last = variants.prepare(Recipe.parse("ddim(steps=11)"))
    assert last is variants.prepare(Recipe.parse("ddim(steps=11)"))
    assert not last.active


def test_a_comparison_pairs_the_same_seeds(catalog: Catalog) -> None:
    values = {"model": "cifar10-dit", "count": 2, "first": "ddim(steps=6)", "second": "dpm(steps=3)"}
    task = making.start_compare(read(CompareRequest, catalog, **values), catalog)
    stages = {update.stage for update in task.follow() if update is not None}
    found: making.Compared = task.result
    assert stages & {"first", "second", "timing"}
    assert torch.equal(found.first.pictures, made(catalog, recipe="ddim(steps=6)").pictures)
    assert torch.equal(found.second.pictures, made(catalog, recipe="dpm(steps=3)").pictures)
    assert (found.first.calls, found.second.calls, found.first.nfe, found.second.nfe) == (6, 3, 12.0, 6.0)
    assert found.ratio.low <= found.ratio.value <= found.ratio.high
    assert found.ratio.value > 1
    assert 5 < found.psnr < 60


def test_beside_a_recipe_stands_the_model_as_it_comes(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PERIOD", 0.01)
    request = read(GenerateRequest, catalog, model="cifar10-dit", count=2, recipe="dpm(steps=4)", steps=6, beside=True)
    task = making.start_generate(request, catalog)
    seen = [update for update in task.follow() if update is not None]
    stock = [update for update in seen if update.stage == "stock"]
    assert stock
    assert all(torch.equal(update.before.pictures, task.result.pictures) for update in stock)
    assert torch.equal(task.result.stock.pictures, made(catalog, recipe="none", steps=6).pictures)
    assert (task.result.calls, task.result.stock.calls, task.result.stock.stock) == (4, 6, None)
    assert made(catalog, recipe="none", steps=2, beside=True).stock is None  # it is the model as it comes


@pytest.mark.parametrize(
    "recipe", ["distilled(steps=2)", "guidance-window + dpm(steps=3)", "bf16 + dpm(steps=3)", "firstblock + ddim(steps=8)"]
)
def test_the_kinds_of_methods_make_the_librarys_pictures(catalog: Catalog, recipe: str) -> None:
    found = made(catalog, recipe=recipe)
    model = catalog.get("cifar10-dit")
    job = read(GenerateRequest, catalog, model="cifar10-dit").job(catalog)
    with accelerate(model.target, recipe):
        assert torch.equal(found.pictures, generate(model.target, job, range(2)))


def test_preparing_a_recipe_is_said_and_can_be_stopped(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "PERIOD", 0.01)
    model, request = catalog.get("cifar10-dit"), read(GenerateRequest, catalog, model="cifar10-dit", count=1, recipe="int8(images=16)")
    before = len(model.variants)
    task = making.start_generate(request, catalog)
    follower = task.follow()
    while (update := next(follower)) is None:
        pass
    assert update.stage == "preparing"
    follower.close()
    assert task.done.wait(10)
    assert isinstance(task.error, Stopped)
    assert len(model.variants) <= before
    assert torch.equal(made(catalog, recipe="none", steps=2).pictures, made(catalog, recipe="none", steps=2).pictures)


def test_a_recipe_that_takes_too_long_to_prepare_is_refused(catalog: Catalog) -> None:
    from vis_accel.app.watching import prepare
    from vis_accel.errors import UsageError
    from vis_accel.recipe import Recipe

    model, task = catalog.get("cifar10-dit"), Task(lambda task: None)
    with pytest.raises(UsageError, match="more than 1e-06 seconds to prepare"):
        prepare(model.variants, Recipe.parse("int8(images=17)"), task, 1e-6)


def test_a_recipe_against_itself_is_equal(catalog: Catalog) -> None:
    task = making.start_compare(
        read(CompareRequest, catalog, model="cifar10-dit", count=2, first="dpm(steps=3)", second="dpm(steps=3)"), catalog
    )
    for _ in task.follow():
        pass
    assert (task.result.identical, task.result.psnr) == (2, 100.0)


def test_the_command_and_the_python_make_the_same_pictures(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shlex

    from PIL import Image
    from torchvision.transforms.functional import pil_to_tensor

    monkeypatch.chdir(tmp_path)
    request = read(
        GenerateRequest, catalog, model="cifar10-dit", recipe="dpm(steps=3, schedule='karras')", seed=11, count=2, classes=[1], guidance=2
    )
    pictures = made(catalog, recipe=request.recipe, seed=11, classes=[1], guidance=2).pictures
    words = shlex.split(reproduce.command(request))
    assert words[0] == "vis-accel"
    with pytest.raises(SystemExit) as ended:
        cli.main(words[1:])
    assert not ended.value.code
    files = sorted((tmp_path / "pictures").glob("*.png"))
    assert [path.name for path in files] == ["000011.png", "000012.png"]
    assert all(torch.equal(pil_to_tensor(Image.open(path)), picture) for path, picture in zip(files, pictures, strict=True))
    names: dict[str, Tensor] = {}
    exec(reproduce.python(request), names)
    assert torch.equal(names["pictures"], pictures)


def test_a_link_brings_the_settings_back(catalog: Catalog) -> None:
    from urllib.parse import parse_qsl

    from vis_accel.app.restoring import restored

    request = read(
        CompareRequest, catalog, model="cifar10-dit", first="heun(steps=4)", second="unipc", seed=3, count=2, classes=[3, 5], guidance=2.5
    )
    tab, values = restored(dict(parse_qsl(reproduce.link(request).removeprefix("?"))), catalog)
    assert tab == "compare"
    assert values == request.model_dump()


@pytest.mark.parametrize(
    "query",
    [{"tab": "generate", "seed": "x"}, {"tab": "generate", "model": "/etc"}, {"tab": "generate", "recipe": "<script>"},
     {"tab": "generate", "count": "inf"},
     {"tab": "compare", "classes": "1,,2"}],
)  # fmt: skip
def test_a_link_that_asks_for_nonsense_brings_nothing(catalog: Catalog, query: dict[str, str]) -> None:
    from vis_accel.app.restoring import restored

    assert restored({"model": "cifar10-dit", **query}, catalog) == (query["tab"], {})
    assert restored({"tab": "etc"}, catalog) == (None, {})


def test_drawings_escape_and_enlarge() -> None:
    pictures = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    pictures[1] += 64
    assert "<script>" not in tiles(pictures, ["<script>", "b"], title="<b>")
    assert "&lt;script&gt;" in tiles(pictures, ["<script>", "b"])
    assert data_uri(pictures[0]).startswith("data:image/png;base64,")
    gap = difference(pictures, pictures)
    assert int(gap.max()) < 8  # black
    assert int(difference(pictures[:1], pictures[1:]).max()) > 240  # a quarter of the range is the brightest
    page = sheet(pictures)
    assert page.width > 600
    assert page.getpixel((3, 3)) == (0, 0, 0)
