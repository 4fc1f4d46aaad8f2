"""What methods of guidance share: which calls evaluate both halves is theirs to say, leaving one out is done here.

Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598) evaluates the network with the condition (c) and without (u) and goes on
with e_u + w (e_c - e_u). Stock pipelines stack both halves into one call of 2B rows. A method of this family lets some calls evaluate the
conditional half alone, B rows, and hands the pipeline a second half of its own making; with e_u := e_c the pipeline's own combination gives
exactly e_c, whatever w is.

Where    hooks on the network, outside everything else that is put on it: what compiles or quantizes its forward sees calls of 2B and of B
         rows, and a counter of rows, whenever it was put there, sees those that are evaluated.
State    of a run is in the run's memory, found by the run's clock. Nothing is kept on the network.
Guided?  A call that carries no two halves (guidance off, a network asked once more for other reasons) is let through as it is.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from vis_accel.clock import Clock, Moment
from vis_accel.errors import NotApplicableError
from vis_accel.guidance.halves import answer_of, joined, other_half, rows_of, taken, with_answer
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch

__all__ = ["Guidance", "Remembered"]


@dataclass
class Remembered:
    """What one run remembers.

    Attributes:
        first: index of its first call; not 0 where image-to-image skips the first ones.
        halves: number of rows -> which of them are the conditional half; None: such a call has no two halves.
        both: whether the call before evaluated both halves.
        under_way: rows, total and `both` of the call that is being answered; None: it is let through.
        difference: e_c - e_u [B, ...] of the last call that evaluated both, where the method keeps it.
    """

    first: int
    halves: dict[int, slice | None] = field(default_factory=dict)
    both: bool | None = None
    under_way: tuple[slice, int, bool] | None = None
    difference: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Guidance(Method):
    """Base of the methods that leave out the unconditional half of some calls."""

    family: ClassVar[Family] = "guidance"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("unconditional half", "replaces"),)

    def check_target(self, view: Any) -> None:
        """Refuses what has no unconditional half to leave out."""
        if not hasattr(view, "require_halves"):
            raise NotApplicableError(f"{self.name} is for guided diffusion pipelines, and the target is none.")
        view.require_halves(self.name)

    @abstractmethod
    def both(self, moment: Moment, run: Remembered) -> bool:
        """Whether this call evaluates both halves."""

    def clears(self) -> bool:
        """Whether solvers forget their history where `both` changes."""
        return False

    def learn(self, run: Remembered, conditional: Tensor, unconditional: Tensor) -> None:
        """Called with the halves [B, ...] of a call that evaluated both."""

    def unconditional(self, run: Remembered, conditional: Tensor) -> Tensor:
        """What stands in for the half that was left out."""
        return conditional

    def idle(self, levels: tuple[float, float]) -> str:
        """Why no call of runs with sigmas from levels[0] to levels[1] was spared its unconditional half."""
        return f"all calls of {self} evaluated both halves"

    def apply(self, target: Any, context: Context) -> Handle:
        """Puts its hooks on the denoiser."""
        with Handle.building(target, str(self)) as handle:
            context.run.watch(handle)
            network = context.view.denoiser
            guide = _Guide(self, context.run, context.view.watch_halves(handle))
            # Before all other hooks: those of counters, put on sooner or later, then see the rows that are evaluated.
            handle.add_hook(lambda: network.register_forward_pre_hook(guide.before, prepend=True, with_kwargs=True))
            handle.add_hook(lambda: network.register_forward_hook(guide.after))
            handle.reports(guide.report)
            handle.at_end(context.run.forget)
        return handle


class _Guide:
    """A method at work on one pipeline. Its methods are the hooks, so that a copy of the pipeline gets a guide of its own.

    Args:
        method: which decides.
        run: the clock.
        halves: (args, kwargs) of a call -> its conditional rows; asked once a run and number of rows.
    """

    def __init__(self, method: Guidance, run: Clock, halves: Any) -> None:
        self.method, self.run, self.halves = method, run, halves
        self.with_both = self.spared = self.unguided = 0
        self.levels = (0.0, 0.0)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The call with its conditional rows alone, where that is enough."""
        moment = self.run.now()
        run = moment.remember(self.method, lambda: Remembered(moment.index))
        total, run.under_way = rows_of(args, kwargs), None
        if total not in run.halves:
            run.halves[total], run.difference = self.halves.conditional(args, kwargs), None
        rows = run.halves[total]
        if rows is None:
            self.unguided += 1
            return None
        both = self.method.both(moment, run)
        if run.both not in (None, both) and self.method.clears():
            self.run.clear_history()
        run.both, run.under_way = both, (rows, total, both)
        self.levels = (min(moment.levels[run.first :]), max(moment.levels[run.first :]))
        self.with_both, self.spared = self.with_both + both, self.spared + (not both)
        return None if both else (taken(args, rows, total), taken(kwargs, rows, total))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        """The answer with the half that was left out; None: as it is."""
        run = self.run.now().remember(self.method, lambda: Remembered(0))
        if run.under_way is None:
            return None
        (rows, total, both), run.under_way = run.under_way, None
        answer = answer_of(output)
        if both:
            self.method.learn(run, answer[rows], answer[other_half(rows, total)])
            return None
        return with_answer(output, joined(answer, self.method.unconditional(run, answer), rows))

    def report(self) -> dict[str, Any]:
        """Of all runs so far."""
        calls = self.with_both + self.spared
        if not calls and not self.unguided:
            return {}
        if not calls:
            return {"no effect": "the calls were not guided (a guidance_scale of at most 1): there was no unconditional half to leave out"}
        found = {self.method.name: f"{self.spared} of {calls} calls without the unconditional half"}
        return found if self.spared else found | {"no effect": self.method.idle(self.levels)}
