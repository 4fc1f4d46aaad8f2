"""A-ViT: weights sum to one, halted tokens say nothing, what is dropped equals what is masked, losses equal a hand's."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from token_pruning.addon_files import halting_file
from vit_models.families import READING_CLASS_TOKEN, images, tiny

from vis_accel import addons, load
from vis_accel.apply import accelerate
from vis_accel.errors import DataError, NotApplicableError, UsageError
from vis_accel.token_pruning.halting import HaltingModel, halt
from vis_accel.token_pruning.losses import depth_loss, ponder_loss

GAMMA, BETA = 3.0, 1.0


def test_a_token_halts_where_its_scores_reach_one_and_its_weights_sum_to_one() -> None:
    scores = torch.tensor([[[0.3, 0.995, float("nan")]], [[0.5, 0.2, 0.4]], [[0.9, 0.2, 0.1]], [[1.0, 1.0, 1.0]]])
    total, alive, weights, path = torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), [], []
    for h in scores:
        weight, total, alive = halt(h, total, alive, 0.01)
        weights.append(weight)
        path.append(alive[0].tolist())
    assert path == [[True, False, True], [True, False, True], [False, False, True], [False, False, True]]
    torch.testing.assert_close(torch.stack(weights)[:, 0, 0], torch.tensor([0.3, 0.5, 0.2, 0.0]))
    torch.testing.assert_close(torch.stack(weights)[:, 0, 1], torch.tensor([1.0, 0.0, 0.0, 0.0]))


@pytest.mark.parametrize("family", READING_CLASS_TOKEN)
@torch.no_grad()
def test_dropped_is_masked_and_a_batch_its_images(family: str, tmp_path: Path) -> None:
    model, pictures = tiny(family), images(6)
    masked = HaltingModel(copy.deepcopy(model), GAMMA, BETA).eval()(pictures)
    depths = masked.depth
    assert depths.min() < depths.max(), "tokens halt at different blocks"
    torch.testing.assert_close(torch.stack(masked.weights).sum(0), torch.ones_like(depths), rtol=1e-5, atol=1e-5)
    with accelerate(model, f"avit(weights={halting_file(tmp_path, model, GAMMA, BETA)!r})"):
        dropped = model(pictures)
        single = torch.cat([model(picture[None]) for picture in pictures])
    torch.testing.assert_close(dropped, masked.logits, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(single, dropped, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_the_output_is_the_mean_of_states_that_a_loop_finds() -> None:
    model, pictures = tiny("plain"), images(2)
    found = HaltingModel(copy.deepcopy(model), GAMMA, BETA).eval()(pictures)
    for image, picture in enumerate(pictures):
        x = model._pos_embed(model.patch_embed(picture[None]))
        alive, total, output = torch.ones(17, dtype=torch.bool), torch.zeros(17), torch.zeros(32)
        for number, block in enumerate(model.blocks):
            part = block(x[:, alive])
            x = x.clone()
            x[:, alive] = part
            h = torch.ones(17) if number == 3 else (GAMMA * x[0, :, 0] - BETA).sigmoid()
            if alive[0]:
                output += (1 - total[0] if total[0] + h[0] >= 0.99 else h[0]) * x[0, 0]
            ends = alive & (total + h >= 0.99)
            total, alive = torch.where(alive, total + h, total), alive & ~ends
            if not alive.any():
                break
        torch.testing.assert_close(
            model.forward_head(model.norm(output[None, None])), found.logits[image : image + 1], rtol=1e-3, atol=1e-4
        )


@torch.no_grad()
def test_nothing_halts_early_where_scores_are_low(tmp_path: Path) -> None:
    """Then the output is the last state, and the work that of the plain network."""
    model, pictures = tiny("plain"), images(3)
    path = halting_file(tmp_path, model, 0.0, 30.0)
    with accelerate(model, f"avit(weights={path!r})"):
        found = model(pictures)
    torch.testing.assert_close(found, model(pictures), rtol=1e-4, atol=1e-5)


def test_losses_are_what_a_hand_computes() -> None:
    assert ponder_loss(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).item() == pytest.approx(2.5)
    wanted = torch.tensor([math.exp(-0.5), 1.0, math.exp(-0.5)])
    wanted = wanted / wanted.sum()
    weights = [torch.tensor([[0.2]]), torch.tensor([[0.5]]), torch.tensor([[0.3]])]
    by_hand = sum(p * (math.log(p) - math.log(q)) for p, q in zip((0.2, 0.5, 0.3), wanted.tolist(), strict=True))
    assert depth_loss(weights, 1.0).item() == pytest.approx(by_hand, abs=1e-6)
    assert depth_loss([share[None, None] for share in wanted], 1.0).item() == pytest.approx(0.0, abs=1e-6)


def test_a_training_step_makes_tokens_halt_earlier() -> None:
    torch.manual_seed(0)
    form = HaltingModel(tiny("plain"), GAMMA, BETA).train()
    optimizer, first = torch.optim.SGD(form.parameters(), lr=0.05), 0.0
    for _ in range(8):
        loss = ponder_loss(form(images(4)).ponder)
        first = first or loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ponder_loss(form(images(4)).ponder).item() < first


@torch.no_grad()
def test_what_ships_saves_work_on_the_bundled_model() -> None:
    network: Any = load("cifar10-vit")
    with accelerate(network, "avit") as handle:
        network(images(8))
        report = handle.report()
    means = [float(str(value).split()[0]) for value in report.values()]
    assert len(means) == len(network.blocks)
    assert means == sorted(means, reverse=True)
    assert means[-1] < means[0] == 65


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotApplicableError, match="none ship"):
        accelerate(tiny("plain"), "avit")
    with pytest.raises(NotApplicableError, match="reads the class token; this one pools"):
        accelerate(tiny("average"), "avit")
    with pytest.raises(UsageError, match="epsilon"):
        accelerate(tiny("plain"), "avit(epsilon=0)")
    model, path = tiny("plain"), tmp_path / "bare.safetensors"
    addons.save(path, {"norm.weight": model.norm.weight}, method="avit", model=model, facts={})
    with pytest.raises(DataError, match="gamma and beta"):
        accelerate(model, f"avit(weights={str(path)!r})")
