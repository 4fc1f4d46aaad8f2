"""Trained parameters come back as they were written, fit one model alone, and differences are off by half a step at most."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vis_accel import addons
from vis_accel.errors import DataError, NotApplicableError, UnknownNameError
from vis_accel.handle import Handle


def network(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return VisionTransformer(img_size=16, patch_size=5, embed_dim=12, depth=1, num_heads=2, num_classes=3, in_chans=1).eval()


def swapped(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    with Handle.building(model, "a test") as handle:
        addons.swap_parameters(handle, model, tensors)
    found = {name: value.clone() for name, value in model.state_dict().items()}
    handle.remove()
    return found


@pytest.mark.parametrize("bits", [8, 4])
def test_differences_are_off_by_half_a_step(bits: int) -> None:
    """The patches are 5 x 5 of one channel: an odd number of steps in a row."""
    base, tuned = network(), network(1).state_dict()
    before = {name: value.clone() for name, value in base.state_dict().items()}
    written = addons.differences(base, tuned, bits=bits)
    found = swapped(base, written)
    assert set(found) == set(tuned)
    for name, value in tuned.items():
        if value.ndim < 2:
            assert torch.equal(found[name], value.to(torch.bfloat16).float())
            continue
        step = (value - before[name]).flatten(1).abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((found[name] - value).flatten(1).abs() <= 0.5001 * step + 1e-6).all(), name
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())


def test_no_difference_changes_nothing() -> None:
    base = network()
    same = {name: value for name, value in base.state_dict().items() if value.ndim > 1}
    for bits in (8, 4):
        found = swapped(base, addons.differences(base, same, bits=bits))
        assert all(torch.equal(found[name], value) for name, value in base.state_dict().items())


def test_a_file_comes_back_bit_for_bit_and_fits_one_model(tmp_path: Path) -> None:
    base, path = network(), tmp_path / "own.safetensors"
    tensors = addons.differences(base, network(1).state_dict(), bits=4)
    addons.save(path, tensors, method="tuned", model=base, facts={"top1": 0.5})
    found = addons.find("tuned", base, str(path))
    assert found.facts["top1"] == 0.5
    assert found.tensors.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) and value.dtype == tensors[name].dtype for name, value in found.tensors.items())
    with pytest.raises(NotApplicableError, match="trained on another model"):
        addons.find("tuned", network(1), str(path))
    with pytest.raises(NotApplicableError, match="parameters of tuned, not of avit"):
        addons.find("avit", base, str(path))
    with pytest.raises(UnknownNameError):
        addons.find("tuned", base, str(tmp_path / "none.safetensors"))


@pytest.mark.parametrize("bits", [8, 4])
def test_differences_that_do_not_fit_are_refused(bits: int) -> None:
    base = network()
    tensors = addons.differences(base, {"head.weight": base.head.weight + 1}, bits=bits)
    form = "#steps" if bits == 8 else "#halves"
    with pytest.raises(DataError, match=r"The difference of head\.weight does not fit"):
        swapped(base, {**tensors, f"head.weight{form}": tensors[f"head.weight{form}"][:, 1:]})
    with pytest.raises(DataError, match=r"The difference of head\.weight does not fit"):
        swapped(base, {f"head.weight{form}": tensors[f"head.weight{form}"]})
    with pytest.raises(DataError, match=r"has no tail\.weight"):
        swapped(base, {name.replace("head", "tail"): value for name, value in tensors.items()})


@pytest.mark.parametrize(("model", "most"), [("cifar10-vit", 10e6), ("cifar10-dit", 25e6)])
def test_what_ships_for_a_model_is_small(model: str, most: float) -> None:
    files = list((Path(addons.__file__).parent / "zoo" / "addons" / model).glob("*.safetensors"))
    assert files
    assert sum(path.stat().st_size for path in files) < most
