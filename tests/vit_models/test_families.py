"""The table of edge families says what the implementations do."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from timm.models import reparameterize_model
from torch import nn

from vis_accel.errors import NotApplicableError
from vis_accel.method import FAMILIES as METHOD_FAMILIES
from vis_accel.vit_models.families import FAMILIES, family_of, register
from vis_accel.vit_models.folding import folded
from vis_accel.vit_models.view import view

BUILT: dict[str, Any] = {}


def built(key: str) -> Any:
    """The example of a family, with random weights, built once."""
    family = FAMILIES[key]
    if family.module is not None and importlib.util.find_spec(family.module) is None:
        pytest.skip(f"{family.module} is not there")
    if key not in BUILT:
        register(family.example)
        torch.manual_seed(0)
        BUILT[key] = timm.create_model(family.example, num_classes=10).eval()
    return BUILT[key]


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in model.modules())


def side(model: Any) -> int:
    return int(model.default_cfg["input_size"][-1])


@pytest.mark.parametrize("key", FAMILIES)
def test_the_example_is_of_its_family_and_of_no_other(key: str) -> None:
    model = built(key)
    assert family_of(FAMILIES[key].example) == key
    assert timm.list_models(FAMILIES[key].names), "the pattern finds nothing"
    assert model.num_classes == 10


@pytest.mark.parametrize("key", FAMILIES)
def test_what_reparameterization_does_to_the_norms(key: str) -> None:
    model = built(key)
    before, after = norms(model), norms(reparameterize_model(model))
    left = folded(model, torch.randn(2, 3, side(model), side(model)))[1].left
    unmoved = "stay" if left == before else "none"
    said = "absent" if before == 0 else "all" if after == 0 else unmoved if after == before else "some"
    assert said == FAMILIES[key].norms, f"{before} -> {after} by timm -> {left}"
    assert said == "stay" or left <= 0.1 * before


@pytest.mark.parametrize("key", FAMILIES)
@torch.no_grad()
def test_what_sizes_it_takes(key: str) -> None:
    model, kind = built(key), FAMILIES[key].size
    full = side(model)
    if kind in ("fixed", "one"):
        smaller = torch.randn(1, 3, full - 32, full - 32)
        with pytest.raises((RuntimeError, AssertionError)):
            model(smaller)
        other = timm.create_model(FAMILIES[key].example, num_classes=10, img_size=full - 32).eval()
        if kind == "fixed":
            assert other(smaller).shape == (1, 10)
            return
        assert full == 224
        with pytest.raises((RuntimeError, AssertionError)):
            other(smaller)
        return
    if kind == "multiples":
        with pytest.raises((RuntimeError, AssertionError, ValueError)):
            model(torch.randn(1, 3, full + 1, full + 1))
        assert model(torch.randn(1, 3, full + 32, full + 32)).shape == (1, 10)
        return
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 10)
    resampled = hasattr(model, "img_size_scaled")
    assert resampled == (kind == "resampled")


@pytest.mark.parametrize("key", FAMILIES)
def test_methods_on_tokens_are_refused_with_a_reason(key: str) -> None:
    seen = view(built(key))
    assert seen.refusal
    with pytest.raises(NotApplicableError, match="tome does not fit"):
        seen.require_blocks("tome")


@pytest.mark.parametrize("key", FAMILIES)
def test_it_takes_families_of_methods_that_exist_and_no_tokens(key: str) -> None:
    takes = FAMILIES[key].takes
    assert takes
    assert set(takes) <= set(METHOD_FAMILIES) - {"tokens", "attention"}


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("timm/efficientvit_b0.r224_in1k", "efficientvit-mit"),
        ("efficientvit_l2", "efficientvit-mit"),
        ("efficientvit_m5", "efficientvit-msra"),
        ("efficientformerv2_s0", "efficientformerv2"),
        ("mobilevitv2_050", "mobilevitv2"),
        ("mobilevit_s", "mobilevit"),
        ("edgenext_small", "edgenext"),
        ("edgevit_s", "edgevit"),
        ("vit_small_patch16_224", None),
    ],
)
def test_names_that_look_alike(name: str, family: str | None) -> None:
    assert family_of(name) == family


def test_the_table_is_light() -> None:
    code = "import vis_accel.vit_models.families, sys; print([m for m in ('torch', 'timm', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
