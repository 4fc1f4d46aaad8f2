"""Who takes part in a benchmark of a classifier: the stock network, the same compiled if a recipe is, and the recipes.

All of them live on one loaded network. Each puts what it changes behind a handle that is suspended while another one runs, so that
switching costs microseconds and timings can be interleaved. A recipe with `compile` is held against two baselines: the network as it
comes, and the network compiled the same way; a gain over the first alone may be the compiler's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from vis_accel.apply import accelerate
from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.handle import Handle
from vis_accel.recipe import Recipe
from vis_accel.vit_models.view import ViTView, view

__all__ = ["ClassifierStage", "Entrant"]

STOCK, COMPILED = "stock", "stock, compiled"
_FOREIGN = ("sampler", "guidance", "cache")  # families that need a denoiser


@dataclass(frozen=True)
class Entrant:
    """One row of the card to be.

    Attributes:
        label: what the row is called.
        recipe: the empty one for the stock row.
        handle: what it changes on the network; None changes nothing.
        lines: what its methods say they will do to this network.
    """

    label: str
    recipe: Recipe
    handle: Handle | None = None
    lines: tuple[str, ...] = ()

    @property
    def compiled(self) -> bool:
        """Whether every new shape of its input costs a compilation."""
        return self.recipe.compiles

    def reported(self) -> list[str]:
        """What its methods counted in the runs so far, in lines: how many images left by which exit, tokens kept."""
        return [] if self.handle is None else [f"{name}: {value}" for name, value in self.handle.report().items()]

    @property
    def float_twin(self) -> Recipe:
        """The recipe without what hides its work from the counter."""
        return self.recipe.float_twin


class ClassifierStage:
    """One network and everybody who takes part; at most one of them is on it at a time.

    Args:
        network: as it came.
        recipes: what is held against the baselines.
        calibration: what methods that look at a run of the network run it on; None: the images that ship with it, if any.

    Raises:
        UsageError: a recipe that occurs twice or does not fit the network.
        NoEffectError: a method that found nothing to do.
    """

    def __init__(self, network: nn.Module, recipes: Sequence[Recipe], *, calibration: Tensor | None = None) -> None:
        self.network, self.calibration = network, calibration
        self.view: ViTView = view(network)
        self._active: Entrant | None = None
        for recipe in recipes:
            self._check(recipe)
        twice = next((recipe for i, recipe in enumerate(recipes) if recipe in recipes[:i]), None)
        if twice is not None:
            raise UsageError(f"{twice} is asked for twice.")
        compiler = next((method for recipe in recipes for method in recipe.methods if method.family == "compile"), None)
        self.baselines: tuple[Entrant, ...] = (Entrant(STOCK, Recipe.empty),)
        self.candidates: tuple[Entrant, ...] = ()
        alone = None if compiler is None else Recipe((compiler,))
        try:
            if alone is not None:
                self.baselines += (self.entrant(COMPILED, alone),)
            for recipe in recipes:
                if recipe != alone:  # that one is the second baseline
                    self.candidates += (self.entrant(str(recipe), recipe),)
        except BaseException:
            self.close()
            raise

    @property
    def everyone(self) -> tuple[Entrant, ...]:
        """Baselines, then candidates."""
        return self.baselines + self.candidates

    def enter(self, entrant: Entrant) -> None:
        """Puts `entrant` on the network and takes off whoever is."""
        if entrant is self._active:
            return
        self.clear()
        if entrant.handle is not None:
            entrant.handle.resume()
        self._active = entrant

    def clear(self) -> None:
        """Leaves the network as it came."""
        if self._active is not None and self._active.handle is not None:
            self._active.handle.suspend()
        self._active = None

    def close(self) -> None:
        """Takes everything off for good."""
        self.clear()
        for entrant in reversed(self.everyone):
            if entrant.handle is not None:
                entrant.handle.remove()

    def drop(self, entrant: Entrant) -> None:
        """Takes off for good somebody who was asked for apart."""
        self.clear()
        if entrant.handle is not None:
            entrant.handle.remove()

    @contextmanager
    def countable(self, entrant: Entrant) -> Iterator[None]:
        """The network doing the work of `entrant` in a form whose multiplications the counter sees: in float, not compiled."""
        twin = entrant.float_twin
        if twin == entrant.recipe:
            self.enter(entrant)
            yield
            return
        self.clear()
        if not twin.methods:
            yield
            return
        with accelerate(self.network, twin):
            yield

    def entrant(self, label: str, recipe: Recipe) -> Entrant:
        """Somebody who takes part with `recipe`, suspended; whoever asks for one who is no candidate drops them."""
        self.clear()
        handle = accelerate(self.network, recipe, calibration=self.calibration)
        handle.suspend()
        # Asked now, of the network as it came: a method that finds its parameters by the network's hash would miss them later.
        return Entrant(label, recipe, handle, tuple(line for method in recipe.methods for line in method.describe(self.view)))

    def _check(self, recipe: Recipe) -> None:
        for method in recipe.methods:
            if method.family in _FOREIGN:
                message = f"{method.name} is for diffusion pipelines, and {type(self.network).__name__} is an image classifier."
                raise NotApplicableError(message, hint="--recipe 'tome(r=8)'; vis-accel list shows the methods there are")
