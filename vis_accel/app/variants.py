"""Recipes kept ready on one model: put on once, suspended, and resumed when asked for; the least recently used one is taken off."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vis_accel.apply import accelerate
from vis_accel.handle import Handle
from vis_accel.recipe import Recipe

__all__ = ["Variants"]


class Variants:
    """The prepared recipes of one model; for one thread.

    Args:
        target: the loaded pipeline or network.
        limit: how many are kept.
    """

    def __init__(self, target: Any, limit: int) -> None:
        self.target, self.limit = target, limit
        self._handles: OrderedDict[Recipe, Handle] = OrderedDict()

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, recipe: Recipe) -> bool:
        return recipe in self._handles

    def prepare(self, recipe: Recipe) -> Handle | None:
        """The suspended handle of `recipe`; None for the empty one, which changes nothing.

        Raises:
            VisAccelError: the recipe does not fit the model.
        """
        if not recipe.methods:
            return None
        if recipe in self._handles:
            self._handles.move_to_end(recipe)
            return self._handles[recipe]
        while len(self._handles) >= self.limit:
            self._handles.popitem(last=False)[1].remove()
        handle = accelerate(self.target, recipe)
        handle.suspend()
        self._handles[recipe] = handle
        return handle

    @contextmanager
    def on(self, recipe: Recipe) -> Iterator[Handle | None]:
        """The model under `recipe` while the context is open."""
        handle = self.prepare(recipe)
        if handle is not None:
            handle.resume()
        try:
            yield handle
        finally:
            if handle is not None:
                handle.suspend()

    def close(self) -> None:
        """Takes all of them off."""
        while self._handles:
            self._handles.popitem()[1].remove()
