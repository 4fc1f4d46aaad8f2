"""What methods on tokens have in common: what they fit, what they exclude, and how they say what they will do."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from vis_accel.errors import NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch
from vis_accel.vit_models.stream import Step, run_blocks
from vis_accel.vit_models.view import ViTView

__all__ = ["FixedCountMethod", "TokenMethod", "vit_view"]


def vit_view(method: Method, view: Any) -> ViTView:
    """`view`, if it is of a vision model.

    Raises:
        NotApplicableError: it is of a diffusion pipeline.
    """
    if not isinstance(view, ViTView):
        raise NotApplicableError(f"{method.name} is for vision transformers, and the target is no timm model.")
    return view


@dataclass(frozen=True, kw_only=True)
class TokenMethod(Method):
    """A method that decides which tokens the blocks see; two of them exclude each other."""

    family: ClassVar[Family] = "tokens"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("tokens", "replaces"),)
    needs: ClassVar[frozenset[str]] = frozenset({"all tokens"})
    breaks: ClassVar[frozenset[str]] = frozenset({"grid"})

    def check_target(self, view: Any) -> None:
        """Refuses pipelines, models that need their grid, and blocks that are not known."""
        vit_view(self, view).require_blocks(self.name)


@dataclass(frozen=True, kw_only=True)
class FixedCountMethod(TokenMethod):
    """A token method whose numbers of tokens depend on nothing but its options: static shapes, so it batches, compiles and exports."""

    sizes: ClassVar[bool] = False  # whether its tokens stand for several

    @abstractmethod
    def counts(self, view: ViTView) -> tuple[int, ...]:
        """Number of tokens after each block, prefix included.

        Raises:
            UsageError: options that do not fit the model's number of blocks or tokens.
        """

    @abstractmethod
    def steps(self, view: ViTView) -> dict[int, Step]:
        """Who runs which block; empty if nothing is to be done."""

    def check_target(self, view: Any) -> None:
        super().check_target(view)
        self.counts(view)

    def describe(self, view: Any) -> list[str]:
        return [f"tokens after each block: {run_lengths(self.counts(view))}"]

    def apply(self, target: Any, context: Context) -> Handle:
        """Wraps the blocks it works on."""
        with Handle.building(target, str(self)) as handle:
            run_blocks(handle, context.view, self.steps(context.view), sizes=self.sizes)
        return handle


def run_lengths(counts: Sequence[int]) -> str:
    """`197 x 3, 138 x 3`: equal neighbours counted."""
    parts: list[tuple[int, int]] = []
    for count in counts:
        if parts and parts[-1][0] == count:
            parts[-1] = (count, parts[-1][1] + 1)
        else:
            parts.append((count, 1))
    return ", ".join(f"{count} x {times}" if times > 1 else str(count) for count, times in parts)
