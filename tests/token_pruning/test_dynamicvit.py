"""DynamicViT and SPViT with trained selectors: what training masks is what inference drops, and gradients reach the selectors."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from token_pruning.addon_files import selector_file, selectors
from vit_models.families import images, tiny

from vis_accel.apply import accelerate
from vis_accel.errors import DataError, NotApplicableError, UsageError
from vis_accel.token_pruning import masked
from vis_accel.token_pruning.dynamicvit import kept_counts
from vis_accel.token_pruning.losses import distillation, ratio_loss, token_distillation
from vis_accel.token_pruning.masked import MaskedModel, highest, masked_attention
from vis_accel.token_pruning.predictor import SELECTORS
from vis_accel.token_pruning.selection import packaged
from vis_accel.token_pruning.trace import trace
from vis_accel.vit_models.view import view

STAGES = (1, 2)
METHODS = {
    "dynamicvit": "dynamicvit(keep=0.6, stages=(1, 2), weights={!r})",
    "package": "package(keep=0.6, stages=(1, 2), selector='trained', weights={!r})",
}


def recipe(method: str, path: str) -> str:
    return METHODS[method].format(path)


def kept_of(method: str, model: Any, path: str) -> dict[int, int]:
    from vis_accel.recipe import Recipe

    chosen: Any = Recipe.parse(recipe(method, path)).methods[0]
    found: dict[int, int] = chosen.kept(view(model))
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["plain", "distilled", "dinov2"])
@torch.no_grad()
def test_masked_is_gathered(method: str, family: str, tmp_path: Path) -> None:
    """The token that is its own key keeps e^q.k; what is dropped counts for nobody, up to the 1e-6 that training adds."""
    model, pictures = tiny(family), images(4)
    path = selector_file(tmp_path, method, model, STAGES)
    form = MaskedModel(
        copy.deepcopy(model), selectors(method, model, STAGES), kept_of(method, model, path), package=method == "package"
    ).eval()
    trained = form(pictures)
    with accelerate(model, recipe(method, path)):
        dropped = model(pictures)
    assert (trained.logits - model(pictures)).abs().max() > 1e-2, "something was dropped"
    torch.testing.assert_close(trained.logits, dropped, rtol=1e-3, atol=1e-4)
    assert all(bool(((bits == 0) | (bits == 1)).all()) for bits in trained.stages)


@pytest.mark.parametrize("method", METHODS)
@torch.no_grad()
def test_a_batch_is_its_images_one_by_one_and_counts_are_as_said(method: str, tmp_path: Path) -> None:
    model, pictures = tiny("plain"), images(5)
    path = selector_file(tmp_path, method, model, STAGES)
    with accelerate(model, recipe(method, path)):
        whole = model(pictures)
        single = torch.cat([model(picture[None]) for picture in pictures])
        ended = trace(model, pictures)
    torch.testing.assert_close(whole, single, rtol=1e-4, atol=1e-5)
    assert ended.x.shape[1] == 1 + kept_of(method, model, path)[2] + (method == "package")
    assert bool((ended.source[:, 0, 0] == 1).all()), "the class token is where it was"


def test_counts_are_floors_of_powers() -> None:
    assert kept_counts(196, 0.7, 3) == [137, 96, 67]  # the paper's, for DeiT
    assert kept_counts(10, 0.9, 1) == [9]
    assert kept_counts(3, 0.1, 2) == [1, 1]
    assert kept_counts(100, 0.7, 2) == [70, math.floor(49.0)]


@torch.no_grad()
def test_a_package_is_the_mean_weighted_by_scores() -> None:
    tokens = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    scores = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    found = packaged(tokens, scores)
    torch.testing.assert_close(found[0, 0], (tokens[0, 0] + 3 * tokens[0, 1]) / 4)
    torch.testing.assert_close(found[1, 0], tokens[1].mean(0))


@pytest.mark.parametrize("method", METHODS)
def test_patches_that_are_gone_say_nothing_to_a_selector(method: str) -> None:
    (selector,) = selectors(method, tiny("plain"), (1,))
    x = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    kept = torch.ones(2, 16)
    kept[:, 10:] = 0
    with torch.no_grad():
        torch.testing.assert_close(selector(x, kept)[:, :10], selector(x[:, :10]), rtol=1e-4, atol=1e-5)
        assert (selector(x)[:, :10] - selector(x[:, :10])).abs().max() > 1e-3
        torch.testing.assert_close(selector(x).exp().sum(-1), torch.ones(2, 16), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_masked_attention_is_attention_among_those_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 6, 4, generator=generator) for _ in range(3))
    kept = torch.tensor([[1.0, 1.0, 0.0, 1.0, 0.0, 1.0]])
    stay = kept[0] > 0
    found = masked_attention(q, k, v, kept, 0.5)[:, :, stay]
    wanted = torch.nn.functional.scaled_dot_product_attention(q[:, :, stay], k[:, :, stay], v[:, :, stay], scale=0.5)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    k[:, :, 2] = 1e4  # a dropped key, however loud, presses nobody down
    torch.testing.assert_close(masked_attention(q, k, v, kept, 0.5)[:, :, stay], wanted, rtol=1e-4, atol=1e-5)


def test_highest_takes_only_those_that_are_there() -> None:
    scores = torch.tensor([[[0.9], [0.8], [0.7], [0.95]]])
    kept = torch.tensor([[1.0, 1.0, 1.0, 0.0]])
    assert highest(scores, kept, 2).tolist() == [[1.0, 1.0, 0.0, 0.0]]


def test_losses_are_what_a_hand_computes() -> None:
    bits = [torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])]
    assert ratio_loss(bits, [0.5, 0.5]).item() == pytest.approx(((0 + 0.25**2) / 2 + 0.25**2) / 2)
    tokens, teacher = torch.zeros(1, 2, 3), torch.tensor([[[1.0, 2.0, 2.0], [50.0, 0.0, 0.0]]])
    assert token_distillation(tokens, teacher, torch.tensor([[1.0, 0.0]])).item() == pytest.approx(3.0)
    logits = torch.tensor([[0.0, math.log(3.0)]])
    assert distillation(torch.zeros(1, 2), logits).item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)
    assert distillation(logits, logits).item() == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_reach_the_selectors_through_the_bits(method: str) -> None:
    torch.manual_seed(0)
    model = tiny("plain")
    chosen = torch.nn.ModuleList(SELECTORS[method](32, 2) for _ in STAGES)
    form = MaskedModel(copy.deepcopy(model), chosen, {1: 10, 2: 7}, package=method == "package").train()
    found = form(images(4))
    found.logits.square().mean().backward()
    slopes = [parameter.grad for parameter in form.selectors.parameters()]
    assert all(slope is not None and slope.isfinite().all() for slope in slopes)
    assert sum(float(slope.abs().sum()) for slope in slopes if slope is not None) > 0
    later, earlier = found.stages[1], found.stages[0]
    assert bool((later <= earlier + 1e-6).all()), "what is gone does not come back"


@pytest.mark.parametrize("method", METHODS)
def test_what_is_refused(method: str, tmp_path: Path) -> None:
    model = tiny("plain")
    path = selector_file(tmp_path, method, model, STAGES)
    with pytest.raises(NotApplicableError, match=r"was trained for the stages \(1, 2\), not for \(1, 3\)") as caught:
        accelerate(model, recipe(method, path).replace("(1, 2)", "(1, 3)"))
    assert "stages=(1, 2)" in str(caught.value.hint)
    with pytest.raises(NotApplicableError, match="none ship"):
        accelerate(model, "dynamicvit" if method == "dynamicvit" else "package(selector='trained')")
    with pytest.raises(UsageError, match="keep"):
        accelerate(model, "dynamicvit(keep=1.2)")
    with pytest.raises(NotApplicableError, match="trained on another model"):
        accelerate(tiny("plain", num_classes=7), recipe(method, path))
    with pytest.raises(UsageError, match="block"):
        accelerate(model, recipe(method, path).replace("(1, 2)", "(1, 9)"))
    wide = selectors(method, tiny("plain", embed_dim=48), STAGES)
    from vis_accel import addons

    addons.save(
        Path(path), {f"selectors.{name}": value for name, value in wide.state_dict().items()}, method=method, model=model,
        facts={"stages": list(STAGES)},
    )  # fmt: skip
    with pytest.raises(DataError, match="does not hold the selectors"):
        accelerate(model, recipe(method, path))


def test_a_bit_that_is_drawn_is_one_or_nothing() -> None:
    torch.manual_seed(0)
    bits = masked.drawn(torch.log_softmax(torch.randn(3, 50, 2), -1), torch.cat((torch.ones(3, 25), torch.zeros(3, 25)), 1))
    assert bool(((bits - bits.round()).abs() < 1e-6).all())
    assert float(bits[:, 25:].abs().max()) == 0
    assert 0 < float(bits[:, :25].mean()) < 1
