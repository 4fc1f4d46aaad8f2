"""What a solver is: a sampler method whose mathematics is a generator.

Space    x has data scale 1 (x = x_t / alpha_t) and sigma = noise / signal, falling; D(x; sigma) is the denoised image. With
         d = (x - D) / sigma, the probability-flow equation is dx / dsigma = d (Karras et al. 2022, arXiv:2206.00364, eq. 1).
Protocol the generator asks for an evaluation by `yield x, sigma` and gets `(x, Evaluation)` back: x comes back too, since a pipeline's
         callback may have edited it. It returns the image. It never knows who runs it: `driver.sample` pulls it, a diffusers
         pipeline pushes it.
Infinity a first sigma of SIGMA_CAP stands for infinity: that step is first order, and its evaluation enters no history.
Cost     coefficients are Python floats (doubles), so nothing waits for a device; x keeps its dtype and device.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.samplers import schedules, stored
from vis_accel.samplers.noise import SIGMA_CAP, Evaluation

if TYPE_CHECKING:
    from vis_accel.samplers.noise import NoiseModel

__all__ = ["SIGMA_CAP", "Evaluation", "Noise", "Past", "Reply", "Request", "Solve", "Solver", "draw"]

Request: TypeAlias = tuple[Tensor, float]  # (x, sigma)
Reply: TypeAlias = tuple[Tensor, Evaluation]  # (x, perhaps edited; what the denoiser says of it)
Solve: TypeAlias = Generator[Request, Reply, Tensor]
Past: TypeAlias = tuple[float, Tensor, Tensor]  # (sigma, x, D), an exact evaluation from before the first knot
Noise: TypeAlias = Callable[[Tensor], Tensor]  # like -> standard normal noise of its shape, dtype and device


@dataclass(frozen=True, kw_only=True)
class Solver(Method):
    """Base of all solvers.

    Attributes:
        steps: the number of solver steps; None: what the pipeline is called with.
        schedule: a name of `schedules.NAMES`, or the sigmas themselves, falling, a last 0 perhaps left out.
        afs: takes the first step without the network (Dockhorn et al. 2022, arXiv:2210.05475, sec. 3.3, the analytic first step): so much
            is noise there that x itself is the answer. With epsilon = x, at the network's scale x_t of unit noise, the exact first-order
            step multiplies by (sqrt(1 + s^2) - s + t) / sqrt(1 + t^2), which is 1 to a part in a thousand from t = 20 on. Departs from
            the paper in taking 1: the run begins at the second knot, with the same noise, and has one call less.
    """

    family: ClassVar[Family] = "sampler"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("scheduler", "replaces"),)

    steps: int | None = option(None, "the number of solver steps", low=1)
    schedule: str | tuple[float, ...] = option("auto", "where the knots lie", choices=tuple(schedules.NAMES))
    afs: bool = option(False, "whether the first step is taken without the network: one call less")

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.schedule, tuple):
            try:
                schedules.check(self.schedule if self.schedule[-1:] == (0.0,) else (*self.schedule, 0.0))
            except UsageError:
                raise self.refused("schedule", "must be sigmas above 0, strictly falling, with or without a last 0") from None
            own = len(self.schedule) - (self.schedule[-1] == 0)
            if self.steps not in (None, own):
                raise self.refused("steps", f"must be {own}, the steps of the given schedule, or be left out")

    def knots(self, steps: int | None, noise: NoiseModel) -> tuple[float, ...]:
        """The knots of a run on this model: its own number of steps or, if it has none, `steps`.

        Raises:
            UsageError: a number or a schedule the model cannot have; one step, where the first is not taken.
            NotApplicableError: an analytic first step from infinity.
        """
        found = self.all_knots(steps, noise)
        if not self.afs:
            return found
        if found[0] >= SIGMA_CAP:
            raise NotApplicableError("afs=True needs a finite first sigma, and this model starts from pure noise.", hint=str(self.name))
        if len(found) < 3:
            raise UsageError("afs=True leaves out the first step's call, and there is no other.", hint=f"{self.name}(steps=2, afs=True)")
        return found[1:]

    def all_knots(self, steps: int | None, noise: NoiseModel) -> tuple[float, ...]:
        """The knots of the schedule, the first of all among them."""
        if isinstance(self.schedule, tuple):
            return schedules.create(self.schedule, None, noise)
        name = self.auto_schedule(noise) if self.schedule == "auto" else self.schedule
        return schedules.create(name, self.steps or steps, noise)

    def auto_schedule(self, noise: NoiseModel) -> str:
        """What "auto" means for this solver on this model."""
        return schedules.resolve("auto", noise)

    def on(self, view: Any) -> Solver:
        """The solver as it runs on this network: with the knots that were searched for it, if that is its schedule.

        Raises:
            NotApplicableError: none were.
        """
        if self.schedule != "searched":
            return self
        return replace(self, steps=None, schedule=stored.find(self, view.fingerprint))

    def plain(self) -> str:
        """The recipe's text without steps and schedule: what a search is for."""
        return str(replace(self, steps=None, schedule="auto"))

    def check_target(self, view: Any) -> None:
        """Refuses what has no scheduler to replace, noise the samplers have no space for, and a schedule that does not fit the noise."""
        if not hasattr(view, "install_scheduler"):
            raise NotApplicableError(f"{self.name} replaces the sampler of a diffusion pipeline, and the target has none.")
        self.on(view).knots(self.steps or 2, view.noise)

    def apply(self, target: Any, context: Context) -> Handle:
        """Puts the solver in the place of the pipeline's scheduler."""
        from vis_accel.samplers.scheduler import SolverScheduler

        view = context.view
        with Handle.building(target, str(self)) as handle:
            view.install_scheduler(handle, SolverScheduler(self.on(view), view.noise, target.scheduler, target))
        return handle

    @property
    @abstractmethod
    def convergence_order(self) -> int:
        """p, when the error of the deterministic solver falls like (step length)^p."""

    @property
    def order(self) -> int:
        """The order of convergence; where it can be chosen, the option of that name."""
        return self.convergence_order

    def resumed(self) -> Solver:
        """The solver of a run that begins at a later knot of its plan: without what only the first steps of a run do."""
        return self

    @abstractmethod
    def solve(self, x: Tensor, sigmas: Sequence[float], *, noise: Noise | None = None, history: Sequence[Past] = ()) -> Solve:
        """Runs from sigmas[0] to sigmas[-1]; see the module's text for the protocol.

        Args:
            x: the state at sigmas[0], data scale 1; any shape, images along dimension 0.
            sigmas: two knots or more, strictly falling; the last may be 0. The tail of a schedule is a schedule.
            noise: where stochastic solvers get their noise; None (a dry run): zeros.
            history: exact evaluations at sigmas above sigmas[0], oldest first, for multistep solvers to start at full order.
        """


def draw(noise: Noise | None, x: Tensor) -> Tensor:
    """Standard normal noise like x, or zeros in a dry run."""
    return torch.zeros_like(x) if noise is None else noise(x)
