"""Laws of every method that drops or merges a fixed number of tokens, on every family the view serves."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from vit_models.families import FAMILIES, READING_CLASS_TOKEN, WITH_CLASS_TOKEN, images, state, tiny

from vis_accel.apply import accelerate
from vis_accel.errors import ConflictError, NoEffectError, NotApplicableError, UsageError
from vis_accel.recipe import Recipe
from vis_accel.token_pruning.trace import trace
from vis_accel.vit_models.view import view

MERGING = [
    "tome(r=3)",
    "tome(r=(4, 0, 2))",
    "tome(r=2, shape='falling')",
    "tome(r=3, proportional='feature')",
    "tome(r=3, proportional='off')",
    "pitome(r=3)",
]
PRUNING = ["topk(keep=0.6, stages=(1, 2))", "evit(keep=0.6, stages=(1, 2))"]
NEUTRAL = ["tome(r=0)", "pitome(r=0)", "topk(keep=1.0)", "evit(keep=1.0)"]


def fits(recipe: str, family: str) -> bool:
    if recipe.startswith(("topk", "evit")) and family not in WITH_CLASS_TOKEN:
        return False
    return not (recipe.startswith("evit") and FAMILIES[family][0].__name__ == "Eva")


CASES = [(recipe, family) for family in FAMILIES for recipe in (*MERGING, *PRUNING) if fits(recipe, family)]


@torch.no_grad()
def logits(model: Any, pictures: torch.Tensor) -> torch.Tensor:
    found: torch.Tensor = model(pictures)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_neutral_settings_are_bit_identical(family: str) -> None:
    model, pictures = tiny(family), images()
    plain = logits(model, pictures)
    for recipe in NEUTRAL:
        if fits(recipe, family):
            with accelerate(model, recipe):
                assert torch.equal(logits(model, pictures), plain), recipe


@pytest.mark.parametrize(("recipe", "family"), CASES)
def test_it_acts_and_leaves_nothing_behind(recipe: str, family: str) -> None:
    model, pictures = tiny(family), images()
    plain, before = logits(model, pictures), state(model)
    handle = accelerate(model, recipe)
    changed = logits(model, pictures)
    assert changed.isfinite().all()
    assert not torch.allclose(changed, plain, atol=1e-4)
    handle.suspend()
    assert torch.equal(logits(model, pictures), plain)
    handle.resume()
    assert torch.equal(logits(model, pictures), changed)
    handle.remove()
    assert torch.equal(logits(model, pictures), plain)
    assert state(model) == before


@pytest.mark.parametrize(("recipe", "family"), CASES)
def test_a_batch_is_its_images_one_by_one_in_any_order(recipe: str, family: str) -> None:
    model, pictures = tiny(family), images(4)
    with accelerate(model, recipe):
        together = logits(model, pictures)
        alone = torch.cat([logits(model, picture[None]) for picture in pictures])
        turned = logits(model, pictures.flip(0)).flip(0)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, turned, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("recipe", MERGING)
@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_add_up_and_every_token_is_part_of_one(recipe: str, family: str) -> None:
    model = tiny(family)
    found = view(model)
    with accelerate(model, recipe):
        end = trace(model, images())
    total = found.prefix + found.patches
    assert end.size.sum(dim=1).tolist() == [total] * 3
    assert torch.equal(end.source.sum(dim=2), end.size)
    assert torch.equal(end.source.sum(dim=1), torch.ones(3, total))
    assert torch.equal(end.source[:, : found.prefix, : found.prefix], torch.eye(found.prefix).expand(3, -1, -1))
    assert end.x.shape[1] == Recipe.parse(recipe).methods[0].counts(found)[-1]  # type: ignore[attr-defined]


@pytest.mark.parametrize("recipe", PRUNING)
def test_kept_patches_stay_in_order_and_come_once(recipe: str) -> None:
    model = tiny("dinov2")
    with accelerate(model, recipe):
        end = trace(model, images())
    for image in end.source:
        rows = image[image.sum(dim=1) > 0]  # a fused token has no row
        assert torch.equal(rows.sum(dim=1), torch.ones(len(rows)))
        places = rows.argmax(dim=1).tolist()
        assert places == sorted(set(places))
        assert places[:5] == [0, 1, 2, 3, 4]


def gray(family: str) -> Any:
    """A model that cannot tell patches apart: no position embedding, images of one colour."""
    model = tiny(family)
    if model.pos_embed is not None:
        with torch.no_grad():
            model.pos_embed[:, -16:] = 0
    return model


@pytest.mark.parametrize("family", [name for name in FAMILIES if FAMILIES[name][0].__name__ != "Eva"])
@pytest.mark.parametrize("recipe", ["tome(r=4)", "tome(r=4, proportional='feature')", "pitome(r=4)"])
def test_merging_equal_tokens_changes_nothing(recipe: str, family: str) -> None:
    """With proportional attention and a head that weighs by size, one token of size s is s equal tokens."""
    model, pictures = gray(family), torch.ones(2, 3, 32, 32) * torch.tensor([0.3, -1.2])[:, None, None, None]
    plain = logits(model, pictures)
    with accelerate(model, recipe):
        torch.testing.assert_close(logits(model, pictures), plain, rtol=1e-5, atol=2e-6)


def test_without_proportional_attention_it_does_change() -> None:
    model, pictures = gray("plain"), torch.ones(2, 3, 32, 32)
    plain = logits(model, pictures)
    with accelerate(model, "tome(r=4, proportional='off')"):
        assert (logits(model, pictures) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("family", WITH_CLASS_TOKEN)
def test_dropped_is_masked(family: str) -> None:
    """Top-K gathers; the same model with the dropped patches masked out as keys gives the same answer."""
    model, pictures = tiny(family), images(1)
    with accelerate(model, "topk(keep=0.5, stages=(1,))"):
        gathered, end = logits(model, pictures), trace(model, pictures)
    kept = end.source[0].sum(dim=0) > 0
    blocks = view(model).blocks
    hooks = []
    for block in blocks[2:]:

        def mask(module: Any, args: Any, options: Any) -> Any:
            return args, options | {"attn_mask": kept[None, None, None, :]}

        hooks.append(block.module.register_forward_pre_hook(mask, with_kwargs=True))
    if view(model).pooling == "avg":  # survivors only
        pool = model.pool
        model.pool = lambda x, pool_type=None: pool(x[:, kept], pool_type)
    masked = logits(model, pictures)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(gathered, masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", READING_CLASS_TOKEN)
@pytest.mark.parametrize("under", ["", "tome(r=3) + ", "topk(keep=0.5) + "])
def test_cls_only_last_is_exact(family: str, under: str) -> None:
    model, pictures = tiny(family), images()
    if under:
        with accelerate(model, under.removesuffix(" + ")):
            plain = logits(model, pictures)
    else:
        plain = logits(model, pictures)
    before = state(model)
    with accelerate(model, under + "cls-only-last"):
        torch.testing.assert_close(logits(model, pictures), plain, rtol=1e-5, atol=1e-5)
    assert state(model) == before


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - set(READING_CLASS_TOKEN)))
def test_cls_only_last_is_refused_where_patches_are_pooled(family: str) -> None:
    with pytest.raises(NotApplicableError, match="pools patches"):
        accelerate(tiny(family), "cls-only-last")


@pytest.mark.parametrize("recipe", ["tome(r=3)", "evit(keep=0.5)"])
def test_gradients_reach_the_patches_and_checkpointing_changes_none(recipe: str) -> None:
    model, pictures = tiny("plain"), images(2).requires_grad_()
    with accelerate(model, recipe):
        model(pictures).square().sum().backward()
        plain = pictures.grad.clone() if pictures.grad is not None else torch.empty(0)
        pictures.grad = None
        model.set_grad_checkpointing(True)
        model(pictures).square().sum().backward()
    assert torch.equal(pictures.grad, plain)
    reached = torch.nn.functional.max_pool2d(plain.abs().sum(dim=1), 8)
    assert (reached > 0).all()


def test_forwards_in_two_threads_do_not_meet() -> None:
    model, pictures = tiny("plain"), images(6)
    with accelerate(model, "tome(r=3)"):
        alone = [logits(model, pictures[:2]), logits(model, pictures[2:])]
        found: dict[int, list[torch.Tensor]] = {0: [], 1: []}

        def work(which: int) -> None:
            for _ in range(20):
                found[which].append(logits(model, pictures[:2] if which == 0 else pictures[2:]))

        threads = [threading.Thread(target=work, args=(which,)) for which in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for which, results in found.items():
        assert len(results) == 20
        for result in results:
            torch.testing.assert_close(result, alone[which], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", ["tome(r=3)", "evit(keep=0.5)", "topk(keep=0.5) + cls-only-last"])
def test_copies_and_checkpoints(recipe: str) -> None:
    model, pictures = tiny("plain"), images()
    keys, weights = list(model.state_dict()), copy.deepcopy(model.state_dict())
    handle = accelerate(model, recipe)
    changed = logits(model, pictures)
    twin = copy.deepcopy(model)
    assert list(model.state_dict()) == keys
    with torch.no_grad():
        twin.head.bias.add_(1.0)
        twin.blocks[0].norm1.weight.zero_()
    assert torch.equal(logits(model, pictures), changed)  # the copy runs its own blocks
    assert not torch.equal(logits(twin, pictures), changed)
    twin.load_state_dict(weights)
    assert torch.equal(logits(twin, pictures), changed)
    handle.remove()


@pytest.mark.parametrize(
    "recipe", ["tome(r=3)", "tome(r=3, proportional='feature')", "pitome(r=2)", "evit(keep=0.5)", "topk(keep=0.5) + cls-only-last"]
)
def test_one_graph_for_a_schedule(recipe: str) -> None:
    model = tiny("plain")
    with accelerate(model, recipe):
        compiled = torch.compile(model, fullgraph=True, backend="eager", dynamic=False)
        with torch.no_grad(), torch.compiler.set_stance("default"):
            first = compiled(images())
            with torch.compiler.set_stance("fail_on_recompile"):
                again = [compiled(images() * scale) for scale in (1.0, 2.0)]
        torch.testing.assert_close(first, logits(model, images()), rtol=1e-5, atol=1e-5)
        assert torch.equal(again[0], first)
    torch._dynamo.reset()


def test_features_with_a_grid_are_refused_under_a_recipe() -> None:
    model = tiny("plain")
    with accelerate(model, "tome(r=3)"), pytest.raises(NotApplicableError, match="full grid"):
        model.forward_intermediates(images())
    model.forward_intermediates(images())


def test_a_second_recipe_on_the_same_blocks_is_refused() -> None:
    model = tiny("plain")
    before = state(model)
    with accelerate(model, "tome(r=3)"):
        with pytest.raises(ConflictError, match="Another recipe"):
            accelerate(model, "topk(keep=0.5)")
    assert state(model) == before


def test_two_token_methods_exclude_each_other() -> None:
    with pytest.raises(ConflictError, match="tokens"):
        Recipe.parse("tome(r=3) + evit")


def test_a_model_without_a_class_token_cannot_be_ranked_by_it() -> None:
    with pytest.raises(NotApplicableError, match="class token"):
        accelerate(tiny("average"), "topk")


def test_nothing_to_trace() -> None:
    with pytest.raises(NoEffectError):
        trace(tiny("plain"), images())


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("tome(r=9)", "limit of 8"),
        ("tome(r=(1, 1, 1, 1, 1))", "the model has 4"),
        ("topk(stages=(4,))", "blocks 0 to 3"),
        ("topk(stages=(2, 1))", "in order"),
        ("evit(keep=0.0)", "> 0"),
        ("evit(keep=1.5)", "<= 1"),
        ("tome(r=-1)", ">= 0"),
        ("tome(shape='risng')", "rising"),
    ],
)
def test_what_does_not_fit_is_said(recipe: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        accelerate(tiny("plain"), recipe)
