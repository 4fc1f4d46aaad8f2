"""The mathematics of merging and ranking, against loops that do it one token at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from vit_models.families import images, tiny

from vis_accel.apply import accelerate
from vis_accel.token_pruning import schedule
from vis_accel.token_pruning.evit import fused
from vis_accel.token_pruning.matching import merge
from vis_accel.token_pruning.pitome import energy
from vis_accel.token_pruning.ranking import best
from vis_accel.token_pruning.tome import choose
from vis_accel.vit_models.attention import class_attention
from vis_accel.vit_models.stream import Tokens


def merged_by_hand(x: list[list[float]], size: list[float], metric: torch.Tensor, r: int, prefix: int) -> list[tuple[float, torch.Tensor]]:
    """Section 3 of the ToMe paper with plain loops: the patches as (size, value), set A without the merged, then set B."""
    count = len(x) - prefix
    a, b = list(range(1, count, 2)), list(range(0, count, 2))
    proposals = []
    for i in a:
        cosines = [float(functional.cosine_similarity(metric[i], metric[j], dim=0)) for j in b]
        j = max(range(len(b)), key=lambda k: cosines[k])
        proposals.append((cosines[j], i, b[j]))
    accepted = sorted(proposals, key=lambda p: -p[0])[:r]
    gone = {i: j for _, i, j in accepted}
    sums = {j: (size[prefix + j], size[prefix + j] * torch.tensor(x[prefix + j])) for j in b}
    for i, j in gone.items():
        s, v = sums[j]
        sums[j] = (s + size[prefix + i], v + size[prefix + i] * torch.tensor(x[prefix + i]))
    kept = [(size[prefix + i], torch.tensor(x[prefix + i])) for i in a if i not in gone]
    return kept + [(s, v / s) for s, v in (sums[j] for j in b)]


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_merging_is_the_papers(prefix: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, metric = torch.randn(2, prefix + 11, 5, generator=generator), torch.randn(2, 11, 6, generator=generator)
    size = torch.randint(1, 5, (2, prefix + 11), generator=generator).float()
    found = merge(Tokens(x, size), *choose(metric, 4), prefix)
    for image in range(2):
        wanted = merged_by_hand(x[image].tolist(), size[image].tolist(), metric[image], 4, prefix)
        assert found.size is not None
        assert torch.equal(found.x[image, :prefix], x[image, :prefix])
        torch.testing.assert_close(found.size[image, prefix:], torch.tensor([s for s, _ in wanted]))
        torch.testing.assert_close(found.x[image, prefix:], torch.stack([v for _, v in wanted]))


def test_merging_has_exact_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    metric = torch.randn(1, 6, 4, generator=generator)
    x = torch.randn(1, 7, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: merge(Tokens(y), *choose(metric, 2), 1).x, (x,))


def test_energy_by_loops() -> None:
    cosines = torch.tensor([[1.0, 0.8, -0.2], [0.8, 1.0, 0.5], [-0.2, 0.5, 1.0]])
    margin = 0.45

    def f(t: float) -> float:
        return t if t > 0 else math.exp(t) - 1

    wanted = [sum(f(float(cosines[i, j]) - margin) for j in range(3) if j != i) / 2 for i in range(3)]
    torch.testing.assert_close(energy(cosines[None], margin)[0], torch.tensor(wanted))


def test_lonely_patches_are_protected_by_pitome() -> None:
    """Five patches of one kind and one of its own: the lone one is never merged, whatever its position."""
    from vis_accel.token_pruning.pitome import Pitome

    for lone in range(6):
        metric = torch.tensor([1.0, 0.0]).repeat(1, 6, 1) + 0.01 * torch.arange(6)[None, :, None]
        metric[0, lone] = torch.tensor([-1.0, 1.0])
        a, b, match = Pitome(r=2).choose(metric, 2, 0.5)
        touched = {*a[0, match.moved[0]].tolist(), *b[0].tolist()}
        assert lone not in touched


def test_class_attention_is_the_row_of_the_matrix() -> None:
    generator = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 3, 7, 4, generator=generator), torch.randn(2, 3, 7, 4, generator=generator)
    whole = (q @ k.transpose(-2, -1) * 0.5).softmax(dim=-1)
    torch.testing.assert_close(class_attention(q, k, rows=1, scale=0.5), whole[:, :, 0].mean(dim=1))
    torch.testing.assert_close(class_attention(q, k, rows=2, scale=0.5), whole[:, :, :2].mean(dim=(1, 2)))


def test_best_and_fused() -> None:
    kept, dropped = best(torch.tensor([[0.1, 0.4, 0.2, 0.3]]), 2)
    assert (kept.tolist(), dropped.tolist()) == ([[1, 3]], [[0, 2]])
    tokens, scores = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[0.1, 0.2]])
    torch.testing.assert_close(fused(tokens, scores), torch.tensor([[[0.7, 1.0]]]))  # not renormalised


def test_schedules() -> None:
    def of(r: int | tuple[int, ...], shape: str = "constant") -> tuple[int, ...]:
        return schedule.merged(r, shape, depth=5, patches=16, prefix=1, name="tome")

    assert of(2) == (2, 2, 2, 2, 2)
    assert of(5) == (5, 5, 3, 1, 1)  # clamped to half of what is left
    assert of((0, 3)) == (0, 3, 0, 0, 0)
    assert of(2, "rising") == (0, 1, 2, 3, 4)
    assert of(2, "falling") == (4, 3, 2, 1, 0)
    assert schedule.kept(196, 0.7) == 138
    assert schedule.kept(10, 0.7) == 7  # 0.7 * 10 is 7.000000000000001 in floats elsewhere
    assert schedule.kept(3, 0.01) == 1


@pytest.mark.parametrize(("recipe", "tokens"), [("tome(r=3)", (14, 11, 8, 5)), ("topk(keep=0.5, stages=(1,))", (17, 9, 9, 9))])
def test_flops_are_those_of_the_tokens(recipe: str, tokens: tuple[int, ...]) -> None:
    """Attention at the number of tokens before the block, MLP at the number after it; to 1%, for what the choice itself costs."""
    model = tiny("plain", depth=4, embed_dim=96, num_heads=3)
    width, before = 96, (17, *tokens[:-1])

    def formula(pairs: list[tuple[int, int]]) -> float:
        return sum(4 * n * width**2 + 2 * n * n * width + 8 * m * width**2 for n, m in pairs)

    def counted() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(images(1))
        return counter.get_total_flops()

    plain = counted()
    with accelerate(model, recipe):
        saved = plain - counted()
    wanted = 2 * (formula([(17, 17)] * 4) - formula(list(zip(before, tokens, strict=True))))
    assert saved == pytest.approx(wanted, rel=0.02)
