"""AdaViT: what is left out equals what is multiplied by nothing, image by image, and usage pulls where it should."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from token_pruning.addon_files import decider_file, deciders
from vit_models.families import WITH_CLASS_TOKEN, images, tiny

from vis_accel.apply import accelerate
from vis_accel.errors import DataError, NotApplicableError, UsageError
from vis_accel.token_pruning.adavit import used
from vis_accel.token_pruning.deciding import DecidingModel
from vis_accel.token_pruning.decisions import Bits, gumbel_sigmoid
from vis_accel.token_pruning.losses import usage_loss


@pytest.mark.parametrize("family", WITH_CLASS_TOKEN)
@torch.no_grad()
def test_left_out_is_multiplied_by_nothing_and_a_batch_its_images(family: str, tmp_path: Path) -> None:
    model, pictures = tiny(family), images(6)
    masked = DecidingModel(copy.deepcopy(model), deciders(model)).eval()(pictures)
    shares = [float(torch.cat([part.flatten() for part in kind]).mean()) for kind in zip(*masked.bits, strict=True)]
    assert sum(0 < share < 1 for share in shares) >= 2, f"some of what there is must be left out, and not all: {shares}"
    with accelerate(model, f"adavit(weights={decider_file(tmp_path, model)!r})"):
        found = model(pictures)
        single = torch.cat([model(picture[None]) for picture in pictures])
    torch.testing.assert_close(found, masked.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(single, found, rtol=1e-3, atol=1e-4)
    assert (found - model(pictures)).abs().max() > 1e-2


@torch.no_grad()
def test_where_all_is_used_nothing_changes(tmp_path: Path) -> None:
    from vis_accel import addons

    model, pictures, path = tiny("plain"), images(3), tmp_path / "open.safetensors"
    whole = deciders(model)
    for name, parameter in whole.named_parameters():
        parameter.fill_(9.0 if name.endswith("bias") else 0.0)
    addons.save(path, {f"deciders.{name}": value for name, value in whole.state_dict().items()}, method="adavit", model=model, facts={})
    plain = model(pictures)
    with accelerate(model, f"adavit(weights={str(path)!r})"):
        assert torch.equal(model(pictures), plain)


def test_an_answer_that_is_no_number_leaves_everything_in() -> None:
    nothing = torch.full((1, 2), float("nan"))
    assert all(bool(part.all()) for part in used(Bits(nothing, nothing, nothing)))
    assert used(Bits(*(torch.tensor([[0.0, 1e-3]]),) * 3)).layers.tolist() == [[False, True]]


def test_bits_are_drawn_by_their_probability_and_pass_gradients() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([-2.0, 0.0, 2.0]).repeat(20_000, 1).requires_grad_()
    bits = gumbel_sigmoid(logits)
    assert bool(((bits.detach() - bits.detach().round()).abs() < 1e-6).all())
    torch.testing.assert_close(bits.detach().mean(0), torch.tensor([-2.0, 0.0, 2.0]).sigmoid(), atol=0.015, rtol=0)
    bits.sum().backward()
    assert logits.grad is not None
    assert float(logits.grad.min()) > 0


def test_usage_is_the_square_of_what_is_missing() -> None:
    bits = [torch.tensor([[1.0, 0.0], [1.0, 1.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])]
    assert usage_loss(bits, 0.5).item() == pytest.approx((5 / 8 - 0.5) ** 2)


def test_gradients_reach_all_three_heads_of_every_block() -> None:
    torch.manual_seed(0)
    form = DecidingModel(tiny("plain"), deciders(tiny("plain"))).train()
    form(images(8)).logits.square().mean().backward()
    for name, parameter in form.deciders.named_parameters():
        assert parameter.grad is not None, name
        assert float(parameter.grad.abs().sum()) > 0, name


def test_what_is_refused(tmp_path: Path) -> None:
    model = tiny("plain")
    with pytest.raises(NotApplicableError, match="none ship"):
        accelerate(model, "adavit")
    with pytest.raises(NotApplicableError, match="class token"):
        accelerate(tiny("average"), "adavit")
    with pytest.raises(UsageError):
        accelerate(model, "adavit(weights=' ')")
    deeper = tiny("plain", depth=5)
    from vis_accel import addons

    path = tmp_path / "deep.safetensors"
    tensors = {f"deciders.{name}": value for name, value in deciders(deeper).state_dict().items()}
    addons.save(path, tensors, method="adavit", model=model, facts={})
    with pytest.raises(DataError, match="does not hold the decision heads"):
        accelerate(model, f"adavit(weights={str(path)!r})")
