"""The clock of a run: which call of the denoiser this is, at which noise level, and what methods remember until the run ends.

Caches, guidance windows and other methods that depend on the step read this one clock, by `context.run.now()` from within a call of the
denoiser. It reads the pipeline's scheduler: our stand-in keeps its own position; a stock one is observed, by its instance's `set_timesteps`
and `step`, while a handle lives, and where image-to-image begins by the pipeline's `get_timesteps`. So no method counts steps, looks a time
up by its value, or leaves state on the model.

Run      begins with `set_timesteps`; every run has a fresh memory, so what an aborted run left behind is never met again.
Call     the scheduler's `step` ends it. A pipeline that asks its network twice for one step (its two halves one after the other) gets the
         same moment twice.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

from vis_accel.errors import UsageError
from vis_accel.handle import Handle

__all__ = ["Clock", "Moment", "Position"]

S = TypeVar("S")


@dataclass(frozen=True)
class Position:
    """Where a scheduler is.

    Attributes:
        run: different for every run.
        index: of the call that is under way or comes next, among the run's calls, 0-based.
        levels: sigma = noise / signal of every call of the run.
    """

    run: int
    index: int
    levels: Sequence[float]


@dataclass(frozen=True)
class Moment:
    """One call of the denoiser.

    Attributes:
        index: of this call, 0-based.
        levels: sigma of every call of the run.
        memory: of the whole run, shared by the methods of a recipe; each takes its own part by `remember`.
    """

    index: int
    levels: Sequence[float]
    memory: dict[Any, Any] = field(repr=False)

    @property
    def calls(self) -> int:
        """Calls of the run."""
        return len(self.levels)

    @property
    def sigma(self) -> float:
        """Noise level of this call."""
        return self.levels[self.index]

    def remember(self, owner: object, make: Callable[[], S]) -> S:
        """What `owner` keeps during this run; made by `make` when the run is new."""
        if owner not in self.memory:
            self.memory[owner] = make()
        return cast("S", self.memory[owner])


class _Noise(Protocol):
    def sigma_at(self, time: float) -> float: ...


class Clock:
    """The clock of one recipe on one pipeline.

    Args:
        pipeline: whose `scheduler` is read, whichever that is at the time.
        noise: of its network: from a stock scheduler's times to sigmas.
    """

    def __init__(self, pipeline: Any, noise: Callable[[], _Noise]) -> None:
        self.pipeline = pipeline
        self._noise = noise
        self._observed: tuple[Any, _Observer] | None = None
        self._run: tuple[object, int] | None = None
        self._memory: dict[Any, Any] = {}

    def watch(self, handle: Handle) -> None:
        """Lets the clock run while `handle` lives: methods that read it call this when they are applied."""
        scheduler = self.pipeline.scheduler
        if hasattr(scheduler, "position") or (self._observed is not None and vars(scheduler).get("step") is self._observed[1].step):
            return  # it keeps its own position, or an earlier method of the recipe has seen to it
        observer = _Observer(scheduler, self._noise())
        handle.swap_item(vars(scheduler), "set_timesteps", observer.set_timesteps)
        handle.swap_item(vars(scheduler), "step", observer.step)
        if hasattr(type(self.pipeline), "get_timesteps"):
            handle.swap_item(vars(self.pipeline), "get_timesteps", _Observed(observer, "start", self.pipeline.get_timesteps))
        self._observed = (scheduler, observer)

    def now(self) -> Moment:
        """The call that is under way.

        Raises:
            UsageError: there is no run: the denoiser was called outside the pipeline, or its scheduler was replaced meanwhile.
        """
        scheduler, source = self.pipeline.scheduler, None
        if hasattr(scheduler, "position"):
            source = scheduler
        elif self._observed is not None and self._observed[0] is scheduler:
            source = self._observed[1]
        if source is None:
            raise UsageError(
                f"The pipeline's scheduler was replaced by {type(scheduler).__name__} after the recipe was put on it.",
                hint="remove the recipe, replace the scheduler, apply the recipe again",
            )
        at = source.position()
        if at.index >= len(at.levels):
            raise UsageError("The denoiser was called outside a run of its pipeline.", hint="call the pipeline itself: pipe(...)")
        if self._run != (source, at.run):
            self._run, self._memory = (source, at.run), {}
        return Moment(at.index, at.levels, self._memory)

    def clear_history(self) -> None:
        """Lets a sampler of ours forget the calls before this one: what the network computes jumps here. Stock ones offer no way to."""
        if hasattr(self.pipeline.scheduler, "clear_history"):
            self.pipeline.scheduler.clear_history()

    def forget(self) -> None:
        """Drops what the last run remembered."""
        self._run, self._memory = None, {}


class _Observer:
    """A stock scheduler's position, by what its pipeline calls: `set_timesteps` and `step` to put in the place of its own."""

    def __init__(self, scheduler: Any, noise: _Noise) -> None:
        self.scheduler, self.noise = scheduler, noise
        self.run = self.made = self.first = 0
        self.levels: tuple[float, ...] = ()
        self.set_timesteps = _Observed(self, "plan", scheduler.set_timesteps)
        self.step = _Observed(self, "advance", scheduler.step)

    def plan(self, found: Any) -> None:
        """A run was planned."""
        self.run, self.made, self.first = self.run + 1, 0, 0
        self.levels = tuple(self.noise.sigma_at(float(time)) for time in self.scheduler.timesteps.tolist())

    def advance(self, found: Any) -> None:
        """A step was made."""
        self.made += 1

    def start(self, found: Any) -> None:
        """Image-to-image was told the times that are left to it, (times, their number)."""
        self.first = len(self.levels) - len(found[0])

    def position(self) -> Position:
        begun = getattr(self.scheduler, "begin_index", None)  # what not every scheduler has
        return Position(self.run, (self.first if begun is None else begun) + self.made, self.levels)


class _Observed:
    """A method of a scheduler or a pipeline, whose results the observer is told. A copy of the scheduler gets an observer of its own."""

    def __init__(self, observer: _Observer, event: str, method: Callable[..., Any]) -> None:
        self.observer, self.event, self.method = observer, event, method
        self.__signature__ = inspect.signature(method)  # pipelines look at it to see what a scheduler takes

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        found = self.method(*args, **kwargs)
        getattr(self.observer, self.event)(found)
        return found
