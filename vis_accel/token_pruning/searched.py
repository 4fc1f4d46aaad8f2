"""Schedules searched for a model: how many tokens to merge in which block, for the work of a constant schedule.

Source   no paper's: the shape that learned schedules take (Chen et al. 2023, DiffRate, arXiv:2305.17997) found without gradients. Loss: the
         Kullback-Leibler divergence of the reduced model's predictions from the full model's, on unlabelled images.
Course   1. Each block alone merges several shares of its patches: its sensitivity.
         2. Dynamic programming over (block, patches left) minimises the sum of sensitivities plus lambda x work; bisection over lambda
            meets the budget of work. Sensitivities do not quite add up, hence
         3. the result is refined on whole runs: tokens are moved between two blocks wherever that lowers the loss within the budget.
         4. It is compared with the constant schedule, and with a rising and a falling one of other work, on images it has not seen.
Work     multiply-adds, or seconds measured on this machine: a table over the number of tokens, for both halves of a block.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel.errors import UsageError
from vis_accel.eval.speed import interleave
from vis_accel.handle import Handle
from vis_accel.token_pruning import schedule
from vis_accel.token_pruning.tome import MergingMethod
from vis_accel.vit_models.stream import run_blocks
from vis_accel.vit_models.view import ViTView, view

__all__ = ["Candidate", "Work", "best_schedule", "search", "work_of", "worked"]

_SHARES = (0.0, 0.0625, 0.125, 0.25, 0.5)  # of its patches, that a block merges while its sensitivity is measured
_BISECTIONS = 30


@dataclass(frozen=True)
class Candidate:
    """One schedule: its name, the tokens merged in each block, its work as a share of the full model's, its loss, its agreement."""

    name: str
    r: tuple[int, ...]
    work: float
    loss: float
    agreement: float


@dataclass(frozen=True)
class Work:
    """What a block costs: `attention[n]` and `feed[n]` for n tokens, 0 .. N."""

    attention: numpy.ndarray[Any, Any]
    feed: numpy.ndarray[Any, Any]

    def of(self, numbers: Sequence[int], prefix: int, patches: int) -> float:
        """Of a schedule: attention before its tokens go, the MLP after."""
        total = 0.0
        for r in numbers:
            total += self.attention[prefix + patches] + self.feed[prefix + patches - r]
            patches -= r
        return float(total)


def worked(found: ViTView) -> Work:
    """Multiply-adds, counted from the layers: each Linear once a token, and 2 n^2 C for the products of attention."""
    block = found.blocks[0].module
    n = numpy.arange(found.prefix + found.patches + 1, dtype=float)
    width = block.attn.num_heads * block.attn.head_dim if hasattr(block.attn, "head_dim") else found.width
    return Work(_linear(block.attn) * n + 2 * n * n * width, _linear(block.mlp) * n)


def work_of(found: ViTView, x: Tensor, *, rounds: int = 5, points: int = 8) -> Work:
    """Seconds, measured for both halves of the middle block at several numbers of tokens, interleaved, and interpolated between them.

    Args:
        found: the model's view; a model with a rotary embedding is measured without it.
        x: any batch of tokens (B x N x C).
        rounds, points: how often, and at how many numbers.
    """
    block, most = found.blocks[len(found.blocks) // 2], found.prefix + found.patches
    counts = sorted({max(found.prefix + 1, round(most * (i + 1) / points)) for i in range(points)})
    with torch.inference_mode():
        runs: dict[str, Callable[[], object]] = {}
        for count in counts:
            runs[f"attention {count}"] = lambda y=x[:, :count]: block.attention(y)  # type: ignore[misc]
            runs[f"feed {count}"] = lambda y=x[:, :count]: block.feed(y)  # type: ignore[misc]
        times = interleave(runs, rounds=rounds, warmup=1)
    every = numpy.arange(most + 1)

    def table(half: str) -> numpy.ndarray[Any, Any]:
        return numpy.interp(every, [0, *counts], [0.0, *(times.median(f"{half} {count}") for count in counts)])

    return Work(table("attention"), table("feed"))


def best_schedule(sensitivity: Sequence[Sequence[float]], work: Work, *, prefix: int, patches: int, budget: float) -> tuple[int, ...]:
    """The schedule with the least sum of sensitivities whose work is at most `budget`.

    Args:
        sensitivity: for each block, the loss at each of `_SHARES` of its patches merged; linear between them.
        work: of a block.
        prefix, patches: tokens at the start.
        budget: in the unit of `work`.

    Raises:
        UsageError: no schedule is as cheap.
    """
    table = numpy.maximum.accumulate(numpy.asarray(sensitivity, dtype=float), axis=1)
    whole = work.of([0] * len(table), prefix, patches)
    low, high = -40.0, 40.0  # logarithm of the loss that may be paid for the work of the whole model
    found = _path(table, work, math.exp(high) / whole, prefix, patches)
    if work.of(found, prefix, patches) > budget:
        raise UsageError(
            f"No schedule does {budget / whole:.3g} of the model's work; the least is {work.of(found, prefix, patches) / whole:.3g}."
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        numbers = _path(table, work, math.exp(middle) / whole, prefix, patches)
        if work.of(numbers, prefix, patches) <= budget:
            high, found = middle, numbers
        else:
            low = middle
    return found


def search(
    model: nn.Module,
    method: MergingMethod,
    images: Tensor,
    fresh: Tensor,
    *,
    by: str = "flops",
    moves: int = 60,
    batch: int = 128,
    progress: Callable[[str], None] = lambda line: None,
) -> list[Candidate]:
    """Searches the schedule of `method`, whose constant `r` sets the work; the best candidate on `fresh` images comes first.

    Args:
        model: as it is without the method.
        method: with a whole number r.
        images: normalised, for the search; `fresh`: others, for the comparison.
        by: the work that is kept: "flops" or "latency" (measured on this machine, at this batch).
        moves: tried in the refinement.
        batch: images at a time.
        progress: receives a line now and then.

    Raises:
        UsageError: `r` is no whole number, or merges nothing.
        NotApplicableError: a model whose tokens must stay.
    """
    found = view(model)
    found.require_blocks(method.name)
    if not isinstance(method.r, int) or method.r < 1:
        raise UsageError(f"{method}: a search keeps the work of a constant r; give one number.", hint=f"{method.name}(r=8)")
    run = _Runner(model, found, method, batch)
    work = worked(found) if by == "flops" else work_of(found, run.tokens(images[:batch]))
    fixed = {shape: replace(method, shape=shape).merged(found) for shape in schedule.SHAPES}
    budget = work.of(fixed["constant"], found.prefix, found.patches)
    plain = run.predictions(images, None)
    progress(f"sensitivity of {len(found.blocks)} blocks at {len(_SHARES) - 1} shares, {len(images)} images")
    table = [[run.loss(images, plain, run.alone(block, share)) for share in _SHARES] for block in range(len(found.blocks))]
    start = best_schedule(table, work, prefix=found.prefix, patches=found.patches, budget=budget)
    starts = {"dynamic programming": start, **fixed}
    affordable = {name: numbers for name, numbers in starts.items() if work.of(numbers, found.prefix, found.patches) <= budget * 1.001}
    first = min(affordable, key=lambda name: run.loss(images, plain, affordable[name]))
    progress(f"refining {first} by {moves} moves")
    refined = _refine(starts[first], lambda numbers: run.loss(images, plain, numbers), work, found, budget, moves)
    full = work.of([0] * len(found.blocks), found.prefix, found.patches)
    truth = run.predictions(fresh, None)
    candidates = []
    better = {} if refined in starts.values() else {"searched": refined}
    for name, numbers in (better | starts).items():
        given = run.predictions(fresh, numbers)
        loss = float(functional.kl_div(given, truth, reduction="batchmean", log_target=True))
        same = float((given.argmax(1) == truth.argmax(1)).float().mean())
        candidates.append(Candidate(name, numbers, work.of(numbers, found.prefix, found.patches) / full, loss, same))
        progress(f"{name}: divergence {loss:.4f}, agreement {same:.4f}, work {candidates[-1].work:.3f}: {numbers}")
    return sorted(candidates, key=lambda one: one.loss if one.work <= budget / full * 1.001 else one.loss + 1e6)


class _Runner:
    """Runs the model under schedules that are only tried."""

    def __init__(self, model: nn.Module, found: ViTView, method: MergingMethod, batch: int) -> None:
        self.model, self.found, self.method, self.batch = model, found, method, batch

    @torch.inference_mode()
    def predictions(self, images: Tensor, numbers: tuple[int, ...] | None) -> Tensor:
        """Logarithms of probabilities (n x classes) under a schedule; None: of the full model."""
        with Handle.building(self.model, "a trial") as handle:
            if numbers is not None and any(numbers):
                run_blocks(handle, self.found, replace(self.method, r=numbers, shape="constant").steps(self.found), sizes=True)
            logits = torch.cat([self.model(part).float() for part in images.split(self.batch)])
        handle.remove()
        return logits.log_softmax(dim=1)

    def loss(self, images: Tensor, plain: Tensor, numbers: tuple[int, ...]) -> float:
        """Divergence from the full model's predictions."""
        return float(functional.kl_div(self.predictions(images, numbers), plain, reduction="batchmean", log_target=True))

    def alone(self, block: int, share: float) -> tuple[int, ...]:
        """The schedule in which one block merges a share of all patches."""
        return (*[0] * block, int(share * self.found.patches), *[0] * (len(self.found.blocks) - block - 1))

    @torch.inference_mode()
    def tokens(self, images: Tensor) -> Tensor:
        """What the middle block is given."""
        seen: list[Tensor] = []
        hook = self.found.blocks[len(self.found.blocks) // 2].module.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        try:
            self.model(images)
        finally:
            hook.remove()
        return seen[0].clone()


def _path(table: numpy.ndarray[Any, Any], work: Work, price: float, prefix: int, patches: int) -> tuple[int, ...]:
    """Dynamic programming backwards over the blocks: what is merged in each, from every number of patches left."""
    depth, best = len(table), numpy.zeros(patches + 1)
    choices = numpy.zeros((depth, patches + 1), dtype=int)
    for block in reversed(range(depth)):
        fresh = numpy.empty(patches + 1)
        for left in range(patches + 1):
            r = numpy.arange(left // 2 + 1)
            lost = numpy.interp(r / max(1, left), _SHARES, table[block])
            spent = work.attention[prefix + left] + work.feed[prefix + left - r]
            total = lost + price * spent + best[left - r]
            choices[block, left] = int(total.argmin())
            fresh[left] = total.min()
        best = fresh
    numbers = []
    for block in range(depth):
        numbers.append(int(choices[block, patches]))
        patches -= numbers[-1]
    return tuple(numbers)


def _refine(
    start: tuple[int, ...], loss: Callable[[tuple[int, ...]], float], work: Work, found: ViTView, budget: float, moves: int
) -> tuple[int, ...]:
    """Moves tokens between two blocks at random, keeping what is better and not dearer."""
    shuffler, best, error = random.Random(0), start, loss(start)
    for _ in range(moves):
        numbers = list(best)
        giver, taker = shuffler.sample(range(len(numbers)), 2)
        amount = shuffler.choice([1, 2, 3, 4, 6])
        numbers[giver] -= min(amount, numbers[giver])
        numbers[taker] += amount
        tried = _possible(tuple(numbers), found.patches)
        if tried != tuple(numbers) or tried == best or work.of(tried, found.prefix, found.patches) > budget * 1.0001:
            continue
        found_error = loss(tried)
        if found_error < error:
            best, error = tried, found_error
    return best


def _possible(numbers: tuple[int, ...], patches: int) -> tuple[int, ...]:
    clamped = []
    for number in numbers:
        clamped.append(max(0, min(number, patches // 2)))
        patches -= clamped[-1]
    return tuple(clamped)


def _linear(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
