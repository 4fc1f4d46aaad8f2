"""Trained parameters: bit for bit what was saved, only on the model they belong to, and gone again afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from vit_models.families import images, state, tiny

from vis_accel import addons
from vis_accel.apply import accelerate
from vis_accel.errors import DataError, NotApplicableError, UnknownNameError
from vis_accel.handle import Handle
from vis_accel.pipelines import view
from vis_accel.zoo import load


def saved(path: Path, scale: float = 0.9) -> Path:
    model = tiny("plain")
    weights = {name: (value * scale).to(torch.bfloat16) for name, value in model.state_dict().items()}
    addons.save(path, weights, method="tuned", model=model, facts={"recipe": "tome(r=2)"})
    return path


@torch.no_grad()
def test_what_was_saved_is_what_runs(tmp_path: Path) -> None:
    path = saved(tmp_path / "mine.safetensors")
    model, pictures = tiny("plain"), images()
    plain, before = model(pictures), state(model)
    other = tiny("plain")
    other.load_state_dict({name: (value * 0.9).to(torch.bfloat16).float() for name, value in other.state_dict().items()})
    handle = accelerate(model, f"tuned(weights='{path}')")
    assert torch.equal(model(pictures), other(pictures))
    handle.suspend()
    assert torch.equal(model(pictures), plain)
    handle.resume()
    assert torch.equal(model(pictures), other(pictures))
    handle.remove()
    assert torch.equal(model(pictures), plain)
    assert state(model) == before


def test_another_models_weights_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path / "mine.safetensors")
    stranger = tiny("plain")
    with torch.no_grad():
        stranger.head.bias.add_(1e-3)
    with pytest.raises(NotApplicableError, match="another model"):
        accelerate(stranger, f"tuned(weights='{path}')")


def test_none_ship_for_a_stranger() -> None:
    with pytest.raises(NotApplicableError, match="trained parameters") as caught:
        accelerate(tiny("plain"), "tuned")
    assert "token_pruning/train.py" in str(caught.value)


def test_neither_a_name_nor_a_file() -> None:
    with pytest.raises(UnknownNameError, match="nowhere"):
        accelerate(tiny("plain"), "tuned(weights='nowhere')")


def test_the_wrong_methods_parameters_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    addons.save(path, {"a": torch.zeros(1)}, method="early-exit", model=tiny("plain"), facts={})
    with pytest.raises(NotApplicableError, match="early-exit"):
        accelerate(tiny("plain"), f"tuned(weights='{path}')")


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_broken_file_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no add-on"):
        accelerate(tiny("plain"), f"tuned(weights='{path}')")


@pytest.mark.parametrize("tensors", [{"nothing.here": torch.zeros(1)}, {"head.bias": torch.zeros(3)}, {"head.nothing": torch.zeros(1)}])
def test_parameters_that_do_not_fit_leave_the_model(tensors: dict[str, torch.Tensor]) -> None:
    model = tiny("plain")
    before = state(model)
    with pytest.raises(DataError), Handle.building(model, "test") as handle:
        addons.swap_parameters(handle, model, {"head.weight": torch.zeros(10, 32)} | tensors)
    assert state(model) == before
    assert model.head.weight.abs().sum() > 0


def test_a_model_in_another_precision_is_the_same_model() -> None:
    model = load("cifar10-vit")
    assert addons.identity(load("cifar10-vit", dtype="bfloat16")) == addons.identity(model)
    with torch.no_grad():
        model.head.bias[0] += 1e-3
    assert addons.identity(model) != addons.identity(load("cifar10-vit"))


@pytest.mark.parametrize("name", sorted(addons.shipped()))
def test_what_ships_fits_the_bundled_model(name: str) -> None:
    path = addons.shipped()[name]
    method, model = str(addons._facts(path)["method"]), load(path.parent.name)
    found = addons.find(method, view(model).denoiser if hasattr(model, "scheduler") else model, name)
    assert found.tensors
    assert all(tensor.isfinite().all() for tensor in found.tensors.values() if tensor.is_floating_point())


def test_what_ships_is_small() -> None:
    sizes = {path: path.stat().st_size for path in addons.shipped().values()}
    assert sum(size for path, size in sizes.items() if path.parent.name == "cifar10-vit") <= 10e6
    assert sum(size for path, size in sizes.items() if path.parent.name != "cifar10-vit") <= 25e6  # students of diffusion models
