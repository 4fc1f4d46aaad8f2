"""q-diffusion: ranges of each call, halves of a concatenation apart, rounding that follows the output; and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from precision.targets import answer, build, state
from torch import Tensor, nn
from vit_models.families import tiny

from vis_accel import ConflictError, NotApplicableError, UsageError
from vis_accel.apply import accelerate
from vis_accel.generation import Job
from vis_accel.precision import kernels
from vis_accel.precision.blocks import answer_of, blocks_of, recorded
from vis_accel.precision.layers import candidates
from vis_accel.precision.q_diffusion import concatenations
from vis_accel.precision.reconstruct import adapted, beta_at, gate, straight_through
from vis_accel.precision.rounding import Range, best_scales, fake_activation, fake_weight, round_weight

needs_kernels = pytest.mark.skipif(kernels.supported() is not None, reason=str(kernels.supported()))
REAL = pytest.param("q-diffusion(images=4)", marks=needs_kernels)
LOW = "q-diffusion(weights=4, activations=8, images=4, iterations=60)"


def put(target: Any, recipe: str) -> Any:
    return accelerate(target, recipe, calibration=Job(steps=3, class_labels=() if hasattr(target, "unet") else (1, 2)))


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).pow(2).mean().sqrt() / wanted.std())


@pytest.mark.parametrize("name", ["dit", "unet"])
@pytest.mark.parametrize("recipe", [REAL, LOW, "q-diffusion(weights=6, activations=6, images=4, ranges='static', rounding='nearest')"])
def test_it_is_close_and_can_be_taken_off(name: str, recipe: str) -> None:
    target = build(name)
    plain, before = answer(target), state(target)
    handle = put(target, recipe)
    changed = answer(target)
    assert torch.equal(answer(target), changed)
    assert 0 < apart(changed, plain) < (0.3 if "weights" in recipe else 0.05)
    handle.suspend()
    assert torch.equal(answer(target), plain)
    handle.resume()
    assert torch.equal(answer(target), changed)
    handle.remove()
    assert state(target) == before
    assert torch.equal(answer(target), plain)


@needs_kernels
def test_a_split_layer_is_its_two_rounded_halves_with_the_ranges_of_the_call() -> None:
    target, caught = build("unet"), list[tuple[Tensor, Tensor]]()
    with put(target, "q-diffusion(images=4)"):
        shortcut, width = next(iter(concatenations(target.unet).items()))
        hook = shortcut.register_forward_hook(lambda module, args, output: caught.append((args[0].clone(), output.clone())))
        answer(target)
        hook.remove()
        halves = vars(shortcut)["forward"].parts
    assert len(caught) == len(halves[0].scale_of) == 3
    for index, (x, output) in enumerate(caught):
        wanted = shortcut.bias.reshape(-1, 1, 1)
        for half, part in zip(halves, (x[:, :width], x[:, width:]), strict=True):
            rounded = fake_activation(part, half.scale_of[index], half.zero_of[index])
            wanted = wanted + nn.functional.conv2d(rounded, half.whole.float() * half.scales[:, None, None, None])
        torch.testing.assert_close(output, wanted, rtol=1e-4, atol=1e-4)
    assert len(set(halves[0].scale_of.tolist())) == 3


def test_ranges_by_step_fit_better_than_one_for_all() -> None:
    """At equal bits: a run whose inputs shrink from call to call, as a denoiser's do."""
    target = build("unet")
    plain, found = answer(target), {}
    for ranges in ("by-step", "static"):
        with put(target, f"q-diffusion(weights=8, activations=4, images=8, ranges={ranges!r})"):
            found[ranges] = apart(answer(target), plain)
    assert found["by-step"] < found["static"]


def test_concatenations_are_found_with_the_width_of_the_stream() -> None:
    unet = build("unet").unet
    found, seen = concatenations(unet), list[int]()
    block = unet.up_blocks[0]
    hook = block.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append((args or tuple(kwargs.values()))[0].shape[1]), with_kwargs=True
    )
    unet(torch.zeros(1, 3, 16, 16), 5)
    hook.remove()
    assert found[block.resnets[0].conv_shortcut] == seen[0]
    assert len(found) == sum(len(up.resnets) for up in unet.up_blocks)
    assert concatenations(build("dit").transformer) == {}


def test_split_groups_lose_less_where_their_ranges_differ() -> None:
    """Two groups of channels, one a hundred times the other: one range drowns the small one."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(4, 8, 5, 5) * 100, torch.randn(4, 8, 5, 5)], 1)
    conv = nn.Conv2d(16, 6, 1)
    with torch.no_grad():
        conv.weight[:, 8:] *= 100  # the small channels matter as much
        wanted = conv(x)

        def rounded(part: Tensor, weight: Tensor) -> Tensor:
            found = Range.of(float(part.min()), float(part.max()), 4)
            return nn.functional.conv2d(fake_activation(part, *found), fake_weight(weight, best_scales(weight)))

        one = rounded(x, conv.weight) + conv.bias[:, None, None]
        two = rounded(x[:, :8], conv.weight[:, :8]) + rounded(x[:, 8:], conv.weight[:, 8:]) + conv.bias[:, None, None]
    assert apart(two, wanted) < 0.5 * apart(one, wanted)


def test_unsplit_at_no_rounding_equals_split() -> None:
    """At 8 bits for everything both forms are close to the float layer, and the bias is counted once."""
    target = build("unet")
    plain = answer(target)
    found = {}
    for split in (True, False):
        with put(target, f"q-diffusion(weights=8, activations=6, split={split}, images=4)"):
            found[split] = apart(answer(target), plain)
    assert max(found.values()) < 0.2


@pytest.mark.parametrize("make", [lambda: nn.Linear(24, 12), lambda: nn.Conv2d(6, 8, 3, padding=1, bias=False)])
def test_adaptive_rounding_follows_the_output(make: Any) -> None:
    torch.manual_seed(2)
    module = make()
    shape = (64, 10, 24) if isinstance(module, nn.Linear) else (64, 6, 7, 7)
    mix = torch.randn(module.weight.shape[1], module.weight.shape[1])  # channels correlated: there rounding to the nearest is not the best
    x = torch.randn(shape) @ mix if isinstance(module, nn.Linear) else torch.einsum("nchw,cd->ndhw", torch.randn(shape), mix)
    x = x if isinstance(module, nn.Linear) else nn.functional.avg_pool2d(x, 3, 1, 1)  # and neighbours alike
    scales = best_scales(module.weight, 3)
    along = scales.reshape([-1, *[1] * (module.weight.ndim - 1)])
    with torch.no_grad():
        wanted = module(x)
        losses = []
        for whole in (round_weight(module.weight, scales, 3), adapted(module, scales, 3, x, x, iterations=400)):
            assert whole.abs().max() <= 3
            assert (
                ((whole.float() * along - module.weight).abs() <= along * 1.001).logical_or(whole.abs() == 3).all()
            )  # up or down, no further
            twin = make()
            twin.load_state_dict(module.state_dict())
            twin.weight.copy_(whole.float() * along)
            losses.append(float((twin(x) - wanted).pow(2).mean()))
    assert losses[1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_block_rounded_as_a_whole_answers_better_than_one_rounded_to_the_nearest(name: str) -> None:
    """The error that is minimised, summed over the blocks, on the inputs of the calibration run itself."""
    found = {}
    for rounding in ("nearest", "adaptive"):
        target = build(name)
        network = target.unet if name == "unet" else target.transformer
        blocks = blocks_of(network, {layer.module for layer in candidates(network)})
        with recorded(blocks, lambda: 0, keep=4) as examples:
            answer(target)
        with put(target, f"q-diffusion(weights=4, images=8, ranges='static', rounding={rounding!r}, iterations=150)"), torch.no_grad():
            errors = [apart(answer_of(block(*one.args, **one.kwargs)), one.answer) for block in blocks for one in examples[block]]
        found[rounding] = sum(errors)
    assert found["adaptive"] < 0.9 * found["nearest"]


def test_blocks_are_the_innermost_of_each_stream() -> None:
    unet, dit = build("unet").unet, build("dit").transformer
    layers = {layer.module for layer in candidates(unet)}
    found = blocks_of(unet, layers)
    inside = [module for modules in found.values() for module in modules]
    assert len(inside) == len(set(inside)) < len(layers)  # none twice, and the first and last layer are in no block
    resnets = [resnet for part in (*unet.down_blocks, unet.mid_block, *unet.up_blocks) for resnet in part.resnets]
    assert set(resnets) <= set(found)
    assert list(blocks_of(dit, {layer.module for layer in candidates(dit)})) == list(dit.transformer_blocks)


def test_the_slope_of_a_rounded_activation_is_that_of_clipping() -> None:
    x = torch.tensor([-3.0, -0.4, 0.3, 5.0], requires_grad=True)
    found = straight_through(x, torch.tensor(0.5), torch.tensor(2), 2)  # 2 bits: -1, -0.5, 0, 0.5
    assert found.tolist() == fake_activation(x.detach(), 0.5, 2, 2).tolist() == [-1.0, -0.5, 0.5, 0.5]
    found.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_the_gate_and_its_exponent() -> None:
    assert gate(torch.tensor([-100.0, 0.0, 100.0])).tolist() == [0, 0.5, 1]
    assert beta_at(0, 100) is None
    assert beta_at(20, 100) == 20
    assert beta_at(100, 100) == pytest.approx(2)


@needs_kernels
def test_refusals() -> None:
    with pytest.raises(NotApplicableError, match="denoisers"):
        accelerate(tiny("plain"), "q-diffusion")
    with pytest.raises(UsageError, match=r"weights.*8, 6 or 4|weights.*must be"):
        accelerate(build("unet"), "q-diffusion(weights=5)")
    target = build("unet")
    with put(target, "q-diffusion(images=2)"):
        with pytest.raises(UsageError, match="calibrated for runs of 3 calls; this one has 4"):
            target(batch_size=1, num_inference_steps=4, output_type="np")
        with pytest.raises(ConflictError, match="quantized already"):
            put(target, "q-diffusion(images=2)")
