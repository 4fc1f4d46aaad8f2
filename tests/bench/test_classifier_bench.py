"""The benchmark of a classifier end to end: rows, two baselines, accuracy, speed alone, resumption, refusals."""

from __future__ import annotations

import json
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from vis_accel import classifier_measuring, cli_bench, registry
from vis_accel.benchmark import Settings, Watcher, bench, preview
from vis_accel.errors import DataError, NoEffectError, NotApplicableError, UsageError
from vis_accel.generation import Job
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch
from vis_accel.recipe import Recipe
from vis_accel.record import Card, Record
from vis_accel.zoo import load
from vis_accel.zoo.labelled import Preparation, Prepared, bundled_images
from vis_accel.zoo.opened import Placement


@dataclass(frozen=True, kw_only=True)
class Shorter(Method):
    """Leaves out the last block, and counts the images."""

    name: ClassVar[str] = "shorter"
    family: ClassVar[Family] = "depth"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("blocks", "wraps"),)

    def describe(self, view: Any) -> list[str]:
        return [f"blocks run: {len(view.blocks) - 1}"]

    def apply(self, target: Any, context: Context) -> Handle:
        seen = 0

        def forward(x: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
            nonlocal seen
            seen += len(x)
            return x

        with Handle.building(target, str(self)) as handle:
            handle.swap_forward(target.blocks[-1], forward)
            handle.reports(lambda: {"images that skipped": seen})
        return handle

    def __str__(self) -> str:
        return self.name


class Idle(Shorter):
    """Changes nothing."""

    name: ClassVar[str] = "idle"

    def apply(self, target: Any, context: Context) -> Handle:
        with Handle.building(target, str(self)) as handle:
            handle.swap_forward(target.blocks[-1], target.blocks[-1].forward)
        return handle


class Fused(Shorter):
    """In the place of compile: the same forward, hidden from the counter like a compiled one."""

    name: ClassVar[str] = "compile"
    family: ClassVar[Family] = "compile"
    exactness: ClassVar[Exactness] = "equivalent"

    def describe(self, view: Any) -> list[str]:
        return []

    def apply(self, target: Any, context: Context) -> Handle:
        inner = target.forward
        with Handle.building(target, str(self)) as handle:
            handle.swap_forward(target, lambda x: _uncounted(inner, x))
        return handle


def _uncounted(inner: Any, x: torch.Tensor) -> torch.Tensor:
    from torch.utils._python_dispatch import _disable_current_modes

    with _disable_current_modes():
        out: torch.Tensor = inner(x)
    return out


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake methods, and timing that takes no time."""
    module = types.ModuleType("fake_vit_methods")
    monkeypatch.setitem(sys.modules, "fake_vit_methods", module)
    for fake in (Shorter, Idle, Fused):
        setattr(module, fake.__name__, fake)
        entry = registry.Entry(f"fake_vit_methods:{fake.__name__}", fake.family, "Nobody 2000, arXiv:0000.00000", "a fake")
        monkeypatch.setitem(registry.METHODS, fake.name, entry)
    monkeypatch.setattr(classifier_measuring, "ROUNDS", 1)


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    made = timm.models.VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=3)
    made.pretrained_cfg = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3}
    return made.eval()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = torch.randint(0, 256, (12, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for index, image in enumerate(pixels):
        place = tmp_path / "data" / "test" / f"class{index % 3}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.numpy()).save(place / f"{index:02}.png")
    return tmp_path / "data"


def settings(**changes: Any) -> Settings:
    return Settings(**{"timing_batch": 4, **changes})


def test_the_bundled_classifier_is_measured_on_the_images_that_ship(tmp_path: Path) -> None:
    card = bench("cifar10-vit", ["shorter"], settings=Settings(samples=100, output=tmp_path))
    stock, row = card.rows
    assert (stock.recipe, row.recipe, stock.n, row.n) == ("stock", "shorter", 100, 100)
    network, images = load("cifar10-vit"), bundled_images("cifar10-vit")
    assert images is not None
    prepared = Prepared(images.first(100), Preparation.of(network))
    x = prepared.pixels(0, 100).float() / 255
    mean, std = (torch.tensor(network.pretrained_cfg[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        right = network((x - mean) / std).argmax(1) == prepared.labels
        network.blocks[-1] = nn.Identity()
        shorter = network((x - mean) / std).argmax(1) == prepared.labels
    assert right.float().mean() > 0.8
    assert stock.quality["top-1"].value == pytest.approx(right.double().mean().item())
    assert row.quality["top-1"].value == pytest.approx(shorter.double().mean().item())
    assert row.quality["top-1 difference"].value == pytest.approx((shorter.double() - right.double()).mean().item())
    assert row.quality["agreement"].value is not None
    assert stock.verdict is None
    assert row.verdict is not None
    assert "n = 100" in row.verdict
    assert "images that skipped: 100" in row.notes
    assert "blocks run: 8" in row.notes
    assert Card.load(tmp_path) == card
    assert "images that skipped: 100" in (tmp_path / "card.md").read_text()
    with Image.open(tmp_path / "card.png") as picture:
        assert len(picture.convert("RGB").getcolors(2**24) or []) > 20


def test_a_network_without_images_gets_rows_of_speed_alone_and_is_left_as_it_came(network: nn.Module, tmp_path: Path) -> None:
    x, said = torch.randn(2, 3, 32, 32), []
    before, logits = {name: dict(vars(module)) for name, module in network.named_modules()}, network(x)
    card = bench(network, ["shorter"], settings=settings(more_timing_batches=(1,), output=tmp_path), watcher=Watcher(say=said.append))
    assert {name: dict(vars(module)) for name, module in network.named_modules()} == before
    assert torch.equal(network(x), logits)
    assert any("speed alone" in line for line in said)
    stock, row = card.rows
    assert (row.n, row.quality, row.verdict, row.data) == (0, {}, None, "no images")
    assert row.settings["input"] == "random normal"
    assert row.speed is not None
    assert row.speed.batch == 4
    assert set(row.speed.ratios) == {"stock"}
    assert [speed.batch for speed in row.other_speeds] == [1]
    assert row.counters["GMACs"] < stock.counters["GMACs"]  # type: ignore[operator]
    assert any("FLOP ratio" in note for note in row.notes)
    text = card.to_markdown()
    assert "images/s, batch 1" in text
    assert "x stock, batch 1" in text


def test_a_recipe_that_compiles_is_held_against_both_baselines(network: nn.Module, folder: Path) -> None:
    card = bench(network, ["shorter + compile", "shorter"], settings=settings(data=folder))
    assert [row.recipe for row in card.rows] == ["stock", "stock, compiled", "shorter + compile", "shorter"]
    stock, compiled, both, plain = card.rows
    assert both.speed is not None
    assert set(both.speed.ratios) == {"stock", "stock, compiled"}
    assert compiled.recipe_form["methods"][0]["name"] == "compile"
    assert compiled.counters == stock.counters  # counted uncompiled
    assert both.counters == plain.counters
    line = next(note for note in both.notes if note.startswith("alone: "))
    assert "; product " in line
    assert "shorter" in line
    assert "stock, compiled" in line  # who stands for compile alone
    assert compiled.quality["agreement"].value == 1
    assert [row.recipe for row in bench(network, ["compile"], settings=settings()).rows] == ["stock", "stock, compiled"]


def test_random_weights_are_timed_on_images_but_never_scored(folder: Path) -> None:
    placement = Placement(random_weights=True, size=64)
    card = bench("timm/test_vit", ["tome(r=1)"], settings=settings(placement=placement))
    assert card.baseline.data == "none: random weights"
    assert card.baseline.settings["size"] == "64 x 64"
    assert all(not row.quality for row in card.rows)


def test_a_recipe_that_changed_nothing_is_an_error(network: nn.Module, folder: Path) -> None:
    with pytest.raises(NoEffectError, match="idle changed nothing: all logits of 12 images"):
        bench(network, ["idle"], settings=settings(data=folder))


def test_logits_that_are_not_finite_are_an_error(network: nn.Module, folder: Path) -> None:
    network.head.bias.data[1] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(DataError, match="stock answers 4 of 4 images with numbers that are not finite"):
        bench(network, ["shorter"], settings=settings(data=folder))


def test_a_killed_run_resumes_and_loses_only_the_row_in_flight(network: nn.Module, folder: Path, tmp_path: Path) -> None:
    def killed(record: Record) -> None:
        if record.recipe == "shorter":
            raise KeyboardInterrupt

    recipes, output = ["shorter", "tome(r=2)"], tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        bench(network, recipes, settings=settings(data=folder, output=output), watcher=Watcher(row=killed))
    kept = [json.loads(line)["record"]["recipe"] for line in (output / "rows.jsonl").read_text().splitlines()]
    assert kept == ["stock", "shorter"]
    said: list[str] = []
    again = settings(data=folder, output=output, resume=True)
    card = bench(network, recipes, settings=again, watcher=Watcher(say=said.append))
    assert [row.recipe for row in card.rows] == ["stock", *recipes]
    assert not any("shorter: timing" in line for line in said)
    assert any("tome(r=2): timing" in line for line in said)
    bench(network, recipes, settings=settings(data=folder, output=output))  # a new run
    assert len(list(output.glob("rows*.jsonl"))) == 2


def test_broken_images_are_refused_or_left_out_and_the_record_says_so(network: nn.Module, folder: Path) -> None:
    (folder / "test" / "class1" / "01.png").write_bytes(b"broken")
    with pytest.raises(DataError, match=r"class1/01\.png does not open"):
        bench(network, ["shorter"], settings=settings(data=folder))
    card = bench(network, ["shorter"], settings=settings(data=folder, skip_broken=True))
    assert card.baseline.n == 11
    assert card.baseline.data == "data/test without 1 of 12 that do not open"


def test_a_preview_says_what_methods_will_do_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm.models.VisionTransformer, "forward", lambda *args, **kwargs: pytest.fail("the network was called"))
    lines = preview("cifar10-vit", [Recipe.parse("tome(r=4)")], job=Job(), placement=Placement())
    assert lines[1] == "data: cifar10-vit/images.safetensors, 500 images"
    assert lines[-1].strip().startswith("tokens after each block: 61, 57")


def test_the_command_prints_rows_json_or_a_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"model": "cifar10-vit", "recipes": [Recipe.parse("shorter")], "job": Job(), "samples": 20, "budget": None}
    options |= dict.fromkeys(("reference", "batch", "device", "dtype", "threads")) | {"resume": False, "allow_pickle": False}
    options |= {"output": tmp_path, "timing_batch": [4, 1], "dry_run": False}
    cli_bench.run(**options, format="human")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cifar10-vit, n = 20, cifar10-vit/images.safetensors, size 32 x 32")
    assert lines[1].split("  ")[0] == ""
    assert "difference, points" in lines[1]
    assert [line.split()[0] for line in lines if line.startswith(("stock", "shorter"))] == ["stock", "shorter"]
    assert any(line.strip().startswith("batch 1: ") for line in lines)
    cli_bench.run(**options, format="json")
    assert json.loads(capsys.readouterr().out)["records"][0]["recipe"] == "shorter"
    cli_bench.run(**options | {"dry_run": True}, format="quiet")
    assert capsys.readouterr().out.splitlines()[-1].strip() == "blocks run: 8"


@pytest.mark.parametrize(
    ("model", "recipe", "job", "changes", "error", "message"),
    [
        ("cifar10-vit", "dpm(steps=3)", {}, {}, NotApplicableError, "dpm is for diffusion pipelines"),
        ("cifar10-vit", "shorter", {"class_labels": (1,)}, {}, UsageError, "takes no class_labels"),
        ("cifar10-vit", "shorter", {}, {"reference": "x"}, UsageError, "--reference is for pipelines"),
        ("cifar10-vit", "shorter", {}, {"samples": 501}, UsageError, "has 500 images; 501 were asked for"),
        ("cifar10-vit", "shorter", {}, {"skip_broken": True}, UsageError, "--skip-broken is for the images of --data"),
        ("cifar10-vit", "shorter", {}, {"more_timing_batches": (4,)}, UsageError, "each once"),
        ("cifar10-vit", "shorter", {}, {"timing_batch": 0}, UsageError, "1 to 4096"),
        ("cifar10-vit", "shorter", {}, {"placement": Placement(size=64)}, UsageError, "images of its own size"),
        ("cifar10-vit", "shorter", {}, {"placement": Placement(random_weights=True)}, UsageError, "random_weights is for timm"),
        ("cifar10-vit", "shorter", {}, {"placement": Placement(dtype="float31")}, UsageError, "float31"),
        ("cifar10-vit", "shorter", {}, {"data": Path("nowhere")}, DataError, "Cannot read nowhere"),
        ("cifar10-vit", "shorter", {}, {"budget": 0.001}, UsageError, "--budget"),
        ("timm/test_vit", "tome(r=1)", {}, {"placement": Placement(random_weights=True, size=70)}, UsageError, "70 x 70"),
        ("timm/test_vit", "tome(r=1)", {}, {"samples": 5, "placement": Placement(random_weights=True)}, UsageError, "no images"),
        ("timm/no_such_vit", "shorter", {}, {}, UsageError, "no_such_vit"),
        ("cifar10-dit", "dpm(steps=3)", {}, {"data": Path("x")}, UsageError, "are for image classifiers"),
        ("cifar10-dit", "dpm(steps=3)", {}, {"placement": Placement(size=64)}, UsageError, "--size is for image classifiers"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    model: str, recipe: str, job: dict[str, Any], changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        bench(model, [recipe], job=Job(**job), settings=settings(**changes))


def test_a_loaded_network_must_be_ready_and_its_classes_those_of_the_folder(network: nn.Module, folder: Path) -> None:
    with pytest.raises(UsageError, match="in training mode"):
        bench(network.train(), ["shorter"], settings=settings())
    network.eval()
    (folder / "test" / "class9").mkdir()
    with pytest.raises(DataError, match=r"4 class folders .* tells 3 classes"):
        bench(network, ["shorter"], settings=settings(data=folder))
    with pytest.raises(UsageError, match="twice"):
        bench(network, ["shorter", "shorter"], settings=settings())


def test_what_is_measured_when_nothing_is_asked_for() -> None:
    """A sampler was, whatever the model."""
    assert any("tokens after each block" in line for line in preview("cifar10-vit", None, job=Job(), placement=Placement()))
