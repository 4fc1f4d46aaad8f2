"""smooth and repq: exact in float whatever the factors, ranges evened out as the papers say, and clear when nothing can be moved."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from precision.targets import answer, build, state
from torch import Tensor, nn
from torch.nn import functional
from vit_models.families import images, tiny

from vis_accel import ConflictError, NoEffectError, UsageError
from vis_accel.apply import accelerate
from vis_accel.generation import Job
from vis_accel.handle import Handle
from vis_accel.precision import kernels
from vis_accel.precision.fold import Survey, surveyed
from vis_accel.precision.repq import one_range
from vis_accel.precision.smooth import smoothing
from vis_accel.recipe import Recipe

FOLDS = ("smooth", "smooth(alpha=0.8)", "repq")
needs_kernels = pytest.mark.skipif(kernels.supported() is not None, reason=str(kernels.supported()))


def put(target: Any, recipe: str) -> Handle:
    if isinstance(target, nn.Module):
        return accelerate(target, recipe, calibration=images())
    return accelerate(target, recipe, calibration=Job(steps=3, class_labels=(1, 2)))


def uneven(model: nn.Module, spread: float = 50.0) -> nn.Module:
    """The model with channels behind its norms of very different sizes, and off centre, as trained transformers have them."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, nn.LayerNorm) and module.weight is not None:
            with torch.no_grad():
                module.weight.mul_(torch.exp(torch.rand(module.weight.shape, generator=generator) * torch.log(torch.tensor(spread))))
                module.bias.add_(2 * torch.randn(module.bias.shape, generator=generator))
    return model


@pytest.mark.parametrize("name", ["dit", "vit"])
@pytest.mark.parametrize("recipe", FOLDS)
@torch.no_grad()
def test_the_function_stays_and_everything_can_be_taken_off(name: str, recipe: str) -> None:
    target = build(name)
    if name == "vit":
        uneven(target, 5.0)
    plain, before = answer(target), state(target)
    with put(target, recipe) as handle:
        assert "norms into" in handle.report()[recipe.partition("(")[0]]
        assert (answer(target) - plain).abs().max() < 2e-5 * plain.abs().max()
        assert state(target) != before
    assert state(target) == before
    assert torch.equal(answer(target), plain)


@pytest.mark.parametrize(
    "model", ["plain", "distilled", "deit3", "clip", "siglip", "registers-average", "qk-norm", "eva", "eva-token", "dinov3"]
)
@torch.no_grad()
def test_families_of_transformers_compute_what_they_did(model: str) -> None:
    network = uneven(tiny(model), 5.0)
    plain = network(images())
    for recipe in ("smooth", "repq"):
        with put(network, recipe):
            assert (network(images()) - plain).abs().max() < 5e-5 * plain.abs().max()


@torch.no_grad()
def test_with_tokens_merged_the_run_that_is_watched_is_the_merged_one() -> None:
    network = uneven(tiny("plain"), 5.0)
    with accelerate(network, "tome(r=2)"):
        merged = network(images())
    with put(network, "tome(r=2) + smooth"):
        assert (network(images()) - merged).abs().max() < 5e-5 * merged.abs().max()


def ranges(found: Survey) -> list[tuple[Tensor, Tensor]]:
    return [(place.low, place.high) for place in found.places]


@torch.no_grad()
def test_behind_repq_every_channel_has_one_range() -> None:
    network = uneven(tiny("plain"))
    with surveyed(network) as before:
        network(images())
    with put(network, "repq"), surveyed(network) as after:
        network(images())
    assert len(after.places) == len(before.places) > 2
    for (low, high), (new_low, new_high) in zip(ranges(before), ranges(after), strict=True):
        assert (high - low).max() > 5 * (high - low).min()
        width = new_high - new_low
        assert torch.allclose(width, width.mean().expand_as(width), rtol=1e-3)
        assert torch.allclose(new_low, new_low.mean().expand_as(new_low), atol=1e-3 * float(width.mean()))


@torch.no_grad()
def test_behind_smooth_at_alpha_one_every_channel_has_peak_one_and_at_half_weights_and_activations_match() -> None:
    network = uneven(tiny("plain"))
    for alpha in (1.0, 0.5):
        with put(network, f"smooth(alpha={alpha})"), surveyed(network) as after:
            network(images())
            for place in after.places:
                peaks = torch.maximum(place.low.abs(), place.high.abs())
                read = torch.stack([reader.weight.abs().amax(0) for reader in place.readers]).amax(0)
                assert torch.allclose(peaks, torch.ones_like(peaks) if alpha == 1 else read, rtol=1e-3)  # eq. 4 with alpha = 1/2


def test_factors_of_dead_channels_are_one() -> None:
    weight = torch.tensor([[1.0, 0.0, 2.0], [4.0, 0.0, 1.0]])
    found = smoothing(torch.tensor([4.0, 3.0, 0.0]), [weight], 0.5)
    assert torch.equal(found, torch.tensor([1.0, 1.0, 1.0]))
    assert smoothing(torch.tensor([16.0, 3.0, 0.0]), [weight], 0.5)[0] == 2


def test_a_constant_channel_is_left_within_the_range_of_the_others() -> None:
    low, high = torch.tensor([-1.0, -3.0, 0.5]), torch.tensor([1.0, 9.0, 0.5])
    r, t = one_range(low, high)
    assert (r > 0).all()
    new_low, new_high = low / r - t, high / r - t
    width = float((high - low).mean())
    assert torch.allclose(new_high[:2] - new_low[:2], torch.full((2,), width), rtol=1e-5)
    assert torch.allclose(new_low, new_low[0].expand(3), atol=1e-4 * width)


class Wide(nn.Module):
    """A norm, and one Linear or more that read it, in the ways a model may be written."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        if self.kind == "residual":
            return self.one(y) + y
        if self.kind == "functional":
            return self.one(y) + functional.linear(y, self.two.weight)
        if self.kind == "reused":
            return self.one(y) + self.one(x)
        if self.kind == "view":
            return self.one(y[:, :2])
        return self.one(y) + self.two(y)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("residual", "not only Linears read it"),
        ("functional", "not only Linears read it"),
        ("view", "no Linear reads it"),
        ("reused", "its readers read something else too"),
        ("two", None),
    ],
)
@torch.no_grad()
def test_a_norm_that_others_read_stays(kind: str, reason: str | None) -> None:
    network = Wide(kind)
    with surveyed(network) as found:
        network(torch.randn(2, 5, 8))
    if reason is None:
        assert [place.name for place in found.places] == ["norm"]
        assert found.places[0].readers == [network.one, network.two]
    else:
        assert not found.places
        assert list(found.left) == [reason]


def with_outliers(model: nn.Module) -> nn.Module:
    """The same function, with a few channels behind each norm large and what reads them small, as large transformers have learned it."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for block in model.blocks:  # type: ignore[union-attr]
            for norm, reader in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                factors = 1 + 60 * (torch.rand(norm.weight.shape, generator=generator) > 0.9)
                norm.weight.mul_(factors)
                norm.bias.mul_(factors)
                reader.weight.div_(factors)
    return model


@needs_kernels
@pytest.mark.parametrize("fold", ["smooth", "repq"])
@torch.no_grad()
def test_int8_behind_it_loses_little_where_a_few_channels_are_large(fold: str) -> None:
    network = with_outliers(tiny("plain"))
    plain, errors = network(images()), []
    for recipe in ("int8(probe=False)", f"{fold} + int8(probe=False)"):
        with put(network, recipe):
            errors.append(float((network(images()) - plain).norm() / plain.norm()))
    assert errors[1] < 0.2 * errors[0]


def test_it_comes_before_what_rounds() -> None:
    assert [method.name for method in Recipe.parse("bf16 + int8 + smooth").methods] == ["smooth", "bf16", "int8"]
    with pytest.raises(ConflictError, match="both replace the scales of norms"):
        Recipe.parse("smooth + repq")


@needs_kernels
def test_refusals() -> None:
    with pytest.raises(NoEffectError, match="group norm"):
        accelerate(build("unet"), "smooth", calibration=Job(steps=2))
    network = tiny("plain")
    with pytest.raises(UsageError, match="images"):
        accelerate(network, "smooth")
    with put(network, "int8(probe=False)"), pytest.raises(ConflictError, match="quantized already"):
        put(network, "smooth")
    with pytest.raises(UsageError, match="alpha"):
        Recipe.parse("smooth(alpha=1.5)")
    with pytest.raises(NoEffectError, match="no layer norms"):
        accelerate(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), "repq", calibration=torch.randn(3, 4))
