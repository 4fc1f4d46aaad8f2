"""A file that was exported computes what the network does, folding changes nothing, and what does not agree is not written."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import timm
import torch
from PIL import Image
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from typer.testing import CliRunner

from vis_accel import exporting
from vis_accel.apply import accelerate
from vis_accel.cli import app
from vis_accel.errors import MissingDependencyError, NotApplicableError, RunError, UsageError, VisAccelError
from vis_accel.exporting import export, image_size
from vis_accel.vit_models import folding as foldings
from vis_accel.vit_models.folding import folded

RECIPE = "tome(r=2)"


def small_vit(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=10).eval()


class Forked(nn.Module):
    """Five norms: one to fold; one whose convolution has a second reader, one that runs twice, one changed in place, one that leads."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"input_size": (3, 16, 16)}
        self.convs = nn.ModuleList(nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1, bias=i % 2 == 0) for i in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(5))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.convs[0](x)).relu()
        y = self.convs[1](x)
        x = self.norms[1](y) + y
        for _ in range(2):
            x = self.norms[2](self.convs[2](x)).relu()
        x = self.norms[3](self.convs[3](x).mul_(2.0))
        x = self.convs[4](self.norms[4](x.relu()))
        out: Tensor = self.head(x.mean((2, 3)))
        return out


def settled(model: nn.Module) -> nn.Module:
    """Norms with statistics and weights that matter."""
    torch.manual_seed(1)
    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.running_mean.normal_(0, 0.2)
                part.running_var.uniform_(0.5, 2)
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(0, 0.2)
    return model.eval()


def run_onnx(path: Path, x: Tensor) -> Tensor:
    import onnxruntime

    return torch.from_numpy(onnxruntime.InferenceSession(str(path)).run(None, {"images": x.numpy()})[0])


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def test_only_norms_that_nothing_else_depends_on_are_folded() -> None:
    model, x = settled(Forked()), torch.randn(4, 3, 16, 16)
    before = copy.deepcopy(model.state_dict())
    network, folding = folded(model, x)
    assert (folding.norms, folding.reparameterized, folding.left) == (5, 5, 4)
    assert isinstance(network.norms[0], nn.Identity)
    assert torch.allclose(network(x), model(x), atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "left"), [("mobilevitv2_050", 0), ("levit_128s", 0), ("fastvit_t8", 0), ("efficientvit_b0", 0)])
@torch.no_grad()
def test_networks_of_timm_are_folded_to_the_last_norm(name: str, left: int) -> None:
    model = settled(timm.create_model(name, num_classes=10))
    x = torch.randn(2, 3, *image_size(model))
    network, folding = folded(model, x)
    assert folding.norms > 20
    assert folding.left == left
    apart = (network(x) - model(x)).abs().max() / model(x).abs().max()
    assert 0 < apart < 1e-4, "equal, but not the same network"


def test_a_fold_that_changes_something_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(convolution: nn.Module, norm: nn.Module) -> nn.Module:
        return copy.deepcopy(convolution)

    monkeypatch.setattr(foldings, "fuse_conv_bn_eval", wrong)
    with pytest.raises(VisAccelError, match=r"Folding the batch norms of Forked moves its logits by"):
        folded(settled(Forked()), torch.randn(2, 3, 16, 16))


def test_attention_biases_kept_from_other_weights_are_not_copied() -> None:
    """LeViT keeps biases between forwards: stale after new weights, and not to be copied at all if gradients were on."""
    model, x = settled(timm.create_model("levit_128s", num_classes=10)), torch.randn(2, 3, 224, 224)
    model(x)
    with torch.no_grad():
        for key, value in model.state_dict().items():
            if key.endswith("attention_biases"):
                value.normal_(0, 3)
        stale = model(x)
        network, _ = folded(model, x)
        fresh = model.train().eval()(x)
        assert (stale - fresh).abs().max() > 100 * (network(x) - fresh).abs().max()


def test_onnx_computes_what_the_network_does_at_any_batch(tmp_path: Path, images: Tensor) -> None:
    pytest.importorskip("onnxruntime")
    model, path = small_vit(), tmp_path / "vit.onnx"
    found = export(model, path, dynamic_batch=True, images=images)
    assert (found.n, found.images, found.agreement, found.recipe) == (5, "given", 1.0, "none")
    assert 0 < found.difference < 1e-4
    assert found.bytes == path.stat().st_size
    for batch in (1, 2, 5):
        assert torch.allclose(run_onnx(path, images[:batch]), model(images[:batch]), atol=1e-4)


def test_onnx_under_a_recipe(tmp_path: Path, images: Tensor) -> None:
    pytest.importorskip("onnxruntime")
    model, path = small_vit(), tmp_path / "vit.onnx"
    plain = model(images[:4])
    found = export(model, path, recipe=RECIPE, batch=4)
    assert found.recipe == RECIPE
    with accelerate(model, RECIPE):
        merged = model(images[:4])
    assert torch.allclose(run_onnx(path, images[:4]), merged, atol=1e-4)
    assert not torch.allclose(merged, plain, atol=1e-4)
    assert torch.equal(model(images[:4]), plain), "the model is as it was"


def test_an_accelerated_model_is_exported_as_it_stands(tmp_path: Path, images: Tensor) -> None:
    model, path = small_vit(), tmp_path / "vit.pt2"
    with accelerate(model, RECIPE):
        found = export(model, path, format="torch", batch=5)
        merged = model(images)
        with pytest.raises(UsageError, match="under a recipe"):
            export(model, path, recipe=RECIPE)
    assert (found.recipe, found.folding) == ("as it stands", None)
    assert torch.allclose(torch.export.load(path).module()(images), merged, atol=1e-5)
    assert not torch.allclose(model(images), merged, atol=1e-4)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = settled(Forked())
    model.train()
    model.norms[0].eval()
    before, keys = copy.deepcopy(model.state_dict()), {name: set(vars(part)) for name, part in model.named_modules()}
    export(model, tmp_path / "net.pt2", format="torch", batch=2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {name: set(vars(part)) for name, part in model.named_modules()} == keys
    assert [part.training for part in model.norms] == [False, True, True, True, True]


@pytest.mark.parametrize("off", [0.5, float("nan")])
def test_a_file_that_does_not_agree_is_not_written(off: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong for the last place of the batch alone."""
    read = exporting._reader

    def disturbed(data: bytes, format: str) -> Any:
        run = read(data, format)

        def wrong(x: Tensor) -> Tensor:
            out = run(x).clone()
            out[-1, 0] += off
            return out

        return wrong

    path = tmp_path / "vit.pt2"
    path.write_text("old")
    monkeypatch.setattr(exporting, "_reader", disturbed)
    with pytest.raises(RunError, match="does not compute what VisionTransformer does, and was not written"):
        export(small_vit(), path, format="torch", batch=4)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "onx"}, "no format of exported files named 'onx'"),
        ({"batch": 0}, "batch is the number of images"),
        ({"opset": 12}, "one of 18 to 23; got 12"),
        ({"format": "torch", "opset": 18}, "opset is of ONNX"),
        ({"size": 4}, "does not take images of 3 x 4 x 4"),
        ({"images": torch.zeros(2, 3, 16, 16)}, "images must be n x 3 x 32 x 32"),
        ({"images": torch.zeros(0, 3, 32, 32)}, "images must be"),
        ({"recipe": "tome(r=9)"}, "above the limit of 8"),
        ({"recipe": "compile"}, "not written into a file"),
        ({"recipe": "int8"}, "not written into a file"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        export(small_vit(), tmp_path / "vit.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_models_that_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"weights in \['torch.float16'\]"):
        export(small_vit().half(), tmp_path / "vit.pt2", format="torch")
    with pytest.raises(UsageError, match="does not say what size"):
        export(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "vit.pt2", format="torch")
    with pytest.raises(NotApplicableError, match="no classifier"):
        export(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "vit.pt2", format="torch", size=8)


def test_without_onnxruntime_the_line_to_type_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r"onnxruntime(?s:.*)pip install 'vis-accel\[onnx\]'"):
        export(small_vit(), tmp_path / "vit.onnx")


def test_a_file_that_ignores_the_image_is_refused_even_if_images_hardly_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of an untrained network are nearly the same for all images: a constant is near them, and of the same class."""
    model = small_vit()
    with torch.no_grad():
        model.head.weight.mul_(1e-3)
        model.head.bias.copy_(torch.arange(10.0))
        constant = model(torch.randn(1, 3, 32, 32))
    monkeypatch.setattr(exporting, "_reader", lambda data, kind: lambda x: constant.expand(len(x), -1))
    with pytest.raises(RunError, match=r"100.0% the same class"):
        export(model, tmp_path / "vit.pt2", format="torch")


def test_a_network_whose_head_is_all_zeros_has_nothing_to_compare(tmp_path: Path) -> None:
    model = small_vit()
    nn.init.zeros_(model.head.weight)
    with pytest.raises(RunError, match="the same logits, so there is nothing to compare"):
        export(model, tmp_path / "vit.pt2", format="torch")


def test_another_size(tmp_path: Path) -> None:
    found = export(small_vit(), tmp_path / "vit.pt2", format="torch", size=48)
    assert found.shape == (1, 3, 48, 48)
    assert torch.export.load(tmp_path / "vit.pt2").module()(torch.zeros(1, 3, 48, 48)).shape == (1, 10)


def test_the_command_compares_on_the_images_of_a_folder(tmp_path: Path) -> None:
    for index in range(3):
        place = tmp_path / "data" / f"class{index}" / "a.png"
        place.parent.mkdir(parents=True)
        noise = numpy.random.default_rng(index).integers(0, 256, (40, 36, 3), dtype=numpy.uint8)
        Image.fromarray(noise).save(place)
    arguments = ["export", "-o", str(tmp_path / "vit.pt2"), "--data", str(tmp_path / "data"), "-n", "2", "--format", "json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["n"], found["images"], found["shape"]) == (2, "given", [1, 3, 32, 32])
    assert found["folding"]["left"] == 0
    (tmp_path / "data" / "class1" / "a.png").write_text("no image")
    broken = CliRunner().invoke(app, [*arguments[:-4], "--format", "json"])
    assert "class1/a.png does not open as an image" in str(broken.exception)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "vit.onx"], "ends in .onnx, or in .pt2"),
        (["-o", "vit.onnx", "--batch", "0"], "--batch must be at least 1"),
        (["-o", "vit.onnx", "--recipe", "tomme"], "no method named 'tomme'"),
        (["-o", "vit.onnx", "--data", "nowhere"], "nowhere holds no images"),
        (["-o", "vit.onnx", "--model", "cifar10-features"], "does not say what size"),
    ],
)
def test_the_command_refuses(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["export", *arguments])
    assert words in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_list_models_names_the_bundled_and_the_families() -> None:
    human = CliRunner().invoke(app, ["list", "models"]).stdout
    assert all(word in human for word in ("cifar10-vit", "timm/levit_128s", "arXiv:2305.07027", "tokens   stay:"))
    form = json.loads(CliRunner().invoke(app, ["list", "models", "--format", "json"]).stdout)
    assert form["bundled"]["cifar10-vit"]["kind"] == "classifier"
    assert form["families"]["levit"]["size"] == "fixed"
    methods = CliRunner().invoke(app, ["list", "--format", "json"])
    assert "tome" in json.loads(methods.stdout), "list alone lists methods, as before"
