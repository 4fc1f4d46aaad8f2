"""How much of the saved work becomes saved time: token methods on models with random weights, both sides compiled, interleaved.

    python token_pruning/sweep.py                      every row of ROWS; rows already in the results file are kept
    python token_pruning/sweep.py --only evit --again  measures some rows anew

Each row compares, in one process and in random order, the compiled model, the compiled model under the recipe, and the compiled model
whose blocks see as many tokens as under the recipe, but the first ones: what is left of the time between the last two is the price of
choosing. Written to token_pruning/results/speed.json, row by row. Weights are random: no row says anything about accuracy.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from vis_accel import accelerate, load
from vis_accel.eval.speed import Timings, interleave
from vis_accel.files import write_atomic
from vis_accel.handle import Handle
from vis_accel.machine import commit, machine, versions
from vis_accel.recipe import Recipe
from vis_accel.runtime.compile import Compile
from vis_accel.token_pruning.base import FixedCountMethod
from vis_accel.vit_models.stream import Step, Tokens
from vis_accel.vit_models.view import BlockView, ViTView, view

RESULTS = Path(__file__).parent / "results" / "speed.json"


@dataclass(frozen=True)
class Row:
    """A model at a batch, a recipe, and the share of the ratio of multiply-adds that its speed-up should reach."""

    model: str
    batch: int
    recipe: str
    bar: float | None = None


ROWS = (
    Row("timm/deit_small_patch16_224", 16, "tome(r=13)", 0.88),
    Row("timm/deit_small_patch16_224", 16, "evit(keep=0.7, stages=(3, 6, 9))", 0.90),
    Row("timm/vit_base_patch16_384", 2, "tome(r=45)", 0.88),
    Row("timm/deit_small_patch16_224", 1, "cls-only-last"),
    Row("timm/deit_small_patch16_224", 16, "topk(keep=0.7, stages=(3, 6, 9))"),
    Row("timm/deit_small_patch16_224", 16, "pitome(r=13)"),
    Row("timm/deit_small_patch16_224", 16, "tome(r=13, proportional='feature')"),
    Row("timm/deit_small_patch16_224", 1, "tome(r=13)"),
    Row("timm/deit_tiny_patch16_224", 16, "tome(r=13)"),
)


@dataclass(frozen=True, kw_only=True)
class FirstTokens(FixedCountMethod):
    """Keeps the first tokens after each block: the counts of another method, chosen for nothing."""

    name: ClassVar[str] = "first-tokens"
    after: tuple[int, ...] = ()

    def counts(self, view: ViTView) -> tuple[int, ...]:
        return self.after

    def steps(self, view: ViTView) -> dict[int, Step]:
        return {block: partial(_first, count) for block, count in enumerate(self.after)}


def _first(count: int, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Tokens:
    x = block.attention(tokens.x, rope=rope).x
    return tokens._replace(x=block.feed(x[:, :count]))


def measure(row: Row, rounds: int, budget: float) -> dict[str, Any]:
    """One row of the results."""
    model = load(row.model, random_weights=True)
    size = model.patch_embed.img_size
    images = torch.randn(row.batch, 3, *size, generator=torch.Generator().manual_seed(0))
    method = Recipe.parse(row.recipe).methods[0]
    recipes: dict[str, Recipe] = {"stock": Recipe((Compile(),)), row.recipe: Recipe.parse(f"{row.recipe} + compile")}
    if isinstance(method, FixedCountMethod):
        recipes["counts alone"] = Recipe((FirstTokens(after=method.counts(view(model))), Compile()))
    work = {"stock": flops(model, images), row.recipe: flops(model, images, row.recipe)}
    with torch.inference_mode():
        plain = model(images)
        with accelerate(model, row.recipe):
            difference = float((model(images) - plain).abs().max())
    times, compiling = timed(model, images, recipes, rounds, budget)
    ratio, flop_ratio = times.ratio(row.recipe, "stock"), work["stock"] / work[row.recipe]
    found: dict[str, Any] = {
        "model": row.model, "batch": row.batch, "recipe": row.recipe, "tokens": method.describe(view(model)),
        "flop_ratio": flop_ratio, "ratio": [ratio.value, ratio.low, ratio.high], "rounds": ratio.n,
        "share_of_flop_ratio": ratio.low / flop_ratio, "bar": row.bar, "largest_difference": difference,
        "images_per_second": {label: row.batch / times.median(label) for label in ("stock", row.recipe)},
        "first_call_seconds": {label: compiling[label] for label in ("stock", row.recipe)},
        "unstable": times.unstable(row.recipe),
    }  # fmt: skip
    if "counts alone" in recipes:
        found["choosing_share"] = 1 - times.median("counts alone") / times.median(row.recipe)
    return found | {"threads": torch.get_num_threads(), "machine": machine(), "versions": versions(), "commit": commit()}


@torch.inference_mode()
def flops(model: Any, images: Tensor, recipe: str | None = None) -> int:
    """Floating-point operations of a batch."""
    handle = None if recipe is None else accelerate(model, recipe)
    with FlopCounterMode(display=False) as counter:
        model(images)
    if handle is not None:
        handle.remove()
    return int(counter.get_total_flops())


def timed(model: Any, images: Tensor, recipes: dict[str, Recipe], rounds: int, budget: float) -> tuple[Timings, dict[str, float]]:
    """All recipes on one model, interleaved; and the seconds of each one's first call, which compiles and is not in the budget."""
    handles: dict[str, Handle] = {}
    active: list[str] = []

    def enter(label: str) -> None:
        if active[:1] != [label]:
            if active:
                handles[active.pop()].suspend()
            handles[label].resume()
            active.append(label)

    @torch.inference_mode()
    def run() -> None:
        model(images)

    for label, recipe in recipes.items():
        handles[label] = accelerate(model, recipe)
        handles[label].suspend()
    first = {}
    for label in recipes:
        enter(label)
        started = time.perf_counter()
        run()
        first[label] = time.perf_counter() - started
    runs: dict[str, Callable[[], object]] = dict.fromkeys(recipes, run)
    return interleave(runs, rounds=rounds, warmup=2, prepare=enter, budget_s=budget), first


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="rows whose recipe or model contains this")
    parser.add_argument("--again", action="store_true", help="measure rows that are there already")
    parser.add_argument("--rounds", type=int, default=200, help="at most; the budget decides")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of timing a row, compilation not counted")
    options = parser.parse_args()
    done = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for row in ROWS:
        key = f"{row.model}, batch {row.batch}, {row.recipe}"
        if (options.only in row.recipe or options.only in row.model) and (options.again or key not in done):
            done[key] = found = measure(row, options.rounds, options.budget)
            write_atomic(RESULTS, json.dumps(done, indent=1) + "\n")
            print(f"{key}: {found['ratio']} of {found['flop_ratio']:.2f}, choosing {found.get('choosing_share', 0):.1%}", flush=True)
            torch._dynamo.reset()


if __name__ == "__main__":
    main()
