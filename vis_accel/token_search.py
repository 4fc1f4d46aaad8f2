"""`search_tokens`: the schedule of merging that suits a model, found on its own images and kept for `shape="searched"`.

found = search_tokens("cifar10-vit", "tome(r=7)", data=Path("cifar10"))
found.recipe                                   # tome(r=(4, 6, 8, ...)), a recipe like any other
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vis_accel.addons import identity
from vis_accel.errors import DataError, UsageError
from vis_accel.files import write_atomic
from vis_accel.recipe import Recipe
from vis_accel.token_pruning.searched import Candidate, search
from vis_accel.token_pruning.stored import Stored
from vis_accel.token_pruning.tome import MergingMethod
from vis_accel.zoo import load
from vis_accel.zoo.cifar10 import CLASSES
from vis_accel.zoo.labelled import Preparation, Prepared, folder_images

__all__ = ["FoundTokens", "search_tokens"]


@dataclass(frozen=True)
class FoundTokens:
    """What a search found.

    Attributes:
        model, network: its name, and the hash of its weights.
        method: the recipe whose work was kept.
        recipe: the method with the best schedule.
        tried: every candidate, the best first; those that do more work than the budget come last.
        settings: images, how work was measured, and so on.
    """

    model: str
    network: str
    method: str
    recipe: str
    tried: tuple[Candidate, ...]
    settings: dict[str, Any]

    def save(self, path: str | Path) -> None:
        """Writes everything as JSON, atomically."""
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    def stored(self) -> Stored:
        """The best schedule, in the form that `token_pruning.stored` keeps."""
        method: Any = Recipe.parse(self.method).methods[0]
        made = f"{self.tried[0].name}; {self.settings['images']} images, work in {self.settings['by']}"
        return Stored(model=self.network, method=method.name, budget=method.r, r=self.tried[0].r, made=made)

    def short(self) -> str:
        """The recipe by which the schedule is found again."""
        method: Any = Recipe.parse(self.method).methods[0]
        return str(replace(method, shape="searched"))


def search_tokens(
    model: str,
    recipe: str,
    *,
    data: Path,
    images: int = 1000,
    by: str = "flops",
    moves: int = 60,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> FoundTokens:
    """Searches a schedule for a merging method.

    Args:
        model: what `load` takes.
        recipe: one merging method with a constant r, whose work is kept: "tome(r=7)".
        data: a folder of class folders; a held-out part of the training images is best. Labels are not used.
        images: for the search; as many others, at most what is left, decide.
        by: "flops", or "latency" measured on this machine.
        moves: of the refinement.
        threads: CPU threads.
        progress: receives a line now and then.

    Raises:
        UsageError: a recipe that is not one merging method with a constant r, or another `by`.
        DataError: fewer than 32 images to search or to decide on.
        NotApplicableError: a model whose tokens must stay.
    """
    methods = Recipe.parse(recipe).methods
    if len(methods) != 1 or not isinstance(methods[0], MergingMethod) or methods[0].shape != "constant":
        raise UsageError(f"A search of token schedules wants one merging method with a constant r; got {recipe}.", hint="tome(r=8)")
    if by not in ("flops", "latency"):
        raise UsageError(f"Work is kept in flops or in latency; got {by!r}.", hint="--by flops")
    if threads is not None:
        torch.set_num_threads(threads)
    network = load(model)
    preparation = Preparation.of(network)
    names = CLASSES if model == "cifar10-vit" else ()
    found = folder_images(data, int(network.num_classes), names)
    found = found.first(min(len(found), 2 * images))
    half = len(found) // 2
    if half < 32:
        raise DataError(f"{data} has {len(found)} images; a search wants at least 64.")
    prepared = Prepared(found, preparation)
    like = next(network.parameters())
    inputs = preparation.normalised(prepared.pixels(0, 2 * half), like)
    tried = search(network, methods[0], inputs[:half], inputs[half:], by=by, moves=moves, progress=progress)
    best = str(replace(methods[0], r=tried[0].r))
    settings = {"images": half, "fresh": half, "by": by, "moves": moves, "data": found.name, "threads": torch.get_num_threads()}
    return FoundTokens(model, identity(network), recipe, best, tuple(tried), settings)
