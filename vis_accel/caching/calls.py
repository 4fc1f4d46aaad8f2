"""What all caches share: the calls of a run, what each remembers of the ones before it, and the way onto a network.

Time     the run's clock says which call this is and at which noise level; nothing is counted here, and nothing lies on the model. A call
         that a pipeline splits in two (its halves one after the other) is two calls of one moment, with memories of their own.
Fresh    memory begins anew with a run, with other shapes, dtypes or devices, and where the noise level rises (a sampler that restarts).
Refused  runs of fewer than 8 calls, of which nothing is left to reuse; solvers of an order above 2, which extrapolate the errors of
         reused outputs; ControlNet's and adapters' residuals, which enter the network between the parts that are reused.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from vis_accel.caching.gate import Gate
from vis_accel.clock import Clock, Moment
from vis_accel.errors import ConflictError, NotApplicableError, UsageError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch

__all__ = ["Cache", "Node", "Past"]

LEAST_CALLS = 8
HIGHEST_ORDER = 2
FOREIGN = (
    "block_controlnet_hidden_states", "controlnet_block_samples", "controlnet_single_block_samples", "down_block_additional_residuals",
    "down_intrablock_additional_residuals", "mid_block_additional_residual", "skip_layers",
)  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A call that was computed in full.

    Attributes:
        index: of the call in its run.
        sigma: its noise level.
        made: what the gate's sources made.
    """

    index: int
    sigma: float
    made: Sequence[Any] = field(repr=False)


@dataclass
class Past:
    """What one call of each moment remembers of the moments before.

    Attributes:
        form: of its inputs.
        sigma: of the last call, full or not.
        nodes: the last full calls, oldest first.
        hits: calls that reused since the last full one.
    """

    form: tuple[Any, ...]
    sigma: float
    nodes: list[Node] = field(default_factory=list)
    hits: int = 0


@dataclass
class _Run:
    """A run: which moment is under way, how many calls it has had, and the past of each."""

    index: int = -1
    number: int = 0
    pasts: dict[int, Past] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Cache(Method):
    """Base of all caches."""

    family: ClassVar[Family] = "cache"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("calls of the denoiser", "replaces"),)
    known: ClassVar[tuple[str, ...]]  # classes of denoisers
    others: ClassVar[str]  # caches for other denoisers

    def check_target(self, view: Any) -> None:
        """Refuses what is no pipeline, and networks this cache does not know."""
        if not hasattr(view, "install_scheduler"):
            raise NotApplicableError(f"{self.name} reuses work from call to call of a diffusion pipeline; the target has no such calls.")
        if not _names(view.denoiser) & {*self.known}:
            raise NotApplicableError(
                f"{self.name} does not know the {type(view.denoiser).__name__} of this pipeline; it knows {', '.join(self.known)}.",
                hint=f"for transformers: {self.others}" if "UNet2DModel" in self.known else f"for U-Nets: {self.others}",
            )

    def apply(self, target: Any, context: Context) -> Handle:
        """Puts the gate's layers in the network and the decision in hooks around it."""
        _refuse_company(self, target, context)
        network, gate = context.view.denoiser, self.gate()
        hooks = _Hooks(self, gate, context.run)
        with Handle.building(target, str(self)) as handle:
            context.run.watch(handle)
            self.install(handle, network, gate)
            # Outside whatever was put on before; a method that comes later and changes the batch must prepend its own hook too.
            handle.add_hook(lambda: network.register_forward_pre_hook(hooks.before, with_kwargs=True, prepend=True))
            handle.add_hook(lambda: network.register_forward_hook(hooks.after))
            handle.reports(hooks.report)
        return handle

    def gate(self) -> Gate:
        """The gate of one handle."""
        return Gate()

    @abstractmethod
    def install(self, handle: Handle, network: Any, gate: Gate) -> None:
        """Lets the network's layers go by the gate."""

    @abstractmethod
    def serve(self, moment: Moment, past: Past) -> Sequence[Any] | None:
        """What the sources answer in this call; None: it is computed in full. There is at least one node."""

    @property
    def depth(self) -> int:
        """How many full calls are remembered."""
        return 1


class _Hooks:
    """The two hooks around the denoiser's forward."""

    def __init__(self, cache: Cache, gate: Gate, clock: Clock) -> None:
        self.cache, self.gate, self.clock = cache, gate, clock
        self.under_way: tuple[Moment, Past] | None = None
        self._lock = threading.Lock()
        self._reused = self._full = 0

    def before(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        moment = self.clock.now()
        self._refuse(moment, kwargs)
        past = self._past(moment, (*args, *kwargs.values()))
        self.under_way = moment, past
        self.gate.open(self.cache.serve(moment, past) if past.nodes else None)

    def after(self, network: Any, args: object, output: object) -> None:
        if self.under_way is None:  # the handle was resumed in the middle of a call
            return
        (moment, past), self.under_way = self.under_way, None
        made = self.gate.close()
        if self.gate.reuse:
            past.hits += 1
        else:
            past.hits = 0
            kept = [node for node in past.nodes if node.sigma != moment.sigma]  # a second look at a time replaces the first
            past.nodes = [*kept, Node(moment.index, moment.sigma, made)][-self.cache.depth :]
        if moment.index == moment.calls - 1:
            past.nodes = []  # the run is over: nothing of it need stay in memory
        with self._lock:
            self._reused += self.gate.reuse
            self._full += not self.gate.reuse

    def report(self) -> Mapping[str, Any]:
        """How many calls reused what earlier ones had computed, and how many were computed in full."""
        found: dict[str, Any] = {"calls reused": self._reused, "calls in full": self._full}
        if self._full and not self._reused:
            found["no effect"] = (
                f"all {self._full} calls were computed in full; a larger interval or threshold, or more steps, would reuse some"
            )
        return found

    def _past(self, moment: Moment, inputs: Iterable[object]) -> Past:
        run = moment.remember(self, _Run)
        run.number = run.number + 1 if run.index == moment.index else 0
        run.index = moment.index
        form = tuple((tuple(x.shape), x.dtype, x.device) for x in inputs if isinstance(x, Tensor) and x.ndim >= 2)
        past = run.pasts.get(run.number)
        if past is None or past.form != form or moment.sigma > past.sigma:
            past = run.pasts[run.number] = Past(form, moment.sigma)
        past.sigma = moment.sigma
        return past

    def _refuse(self, moment: Moment, kwargs: dict[str, Any]) -> None:
        if moment.calls < LEAST_CALLS:
            raise UsageError(
                f"{self.cache.name} needs a run of at least {LEAST_CALLS} calls, and this one has {moment.calls}: too little would be "
                "left to reuse.",
                hint="more steps, or no cache",
            )
        foreign = [name for name in FOREIGN if kwargs.get(name) is not None]
        if foreign:
            raise UsageError(f"{self.cache.name} cannot reuse parts of a network that is also given {', '.join(foreign)}.")


def _names(network: Any) -> set[str]:
    return {kind.__name__ for kind in type(network).__mro__}


def _refuse_company(cache: Cache, target: Any, context: Context) -> None:
    """Raises ConflictError beside a solver of too high an order, or a compiler that keeps no Python."""
    solver = next((method for method in context.recipe.methods if method.family == "sampler"), None)
    if solver is None:
        what, order = type(target.scheduler).__name__, getattr(target.scheduler.config, "solver_order", 1)
    else:
        what, order = str(solver), getattr(solver, "order", 1)
    if order > HIGHEST_ORDER:
        message = f"{cache.name} beside {what}: a solver of order {order} extrapolates the errors of reused outputs."
        raise ConflictError(message, hint=f"a solver of order {HIGHEST_ORDER} at most, say {cache} + dpm(order=2)")
    for method in context.recipe.methods:
        if method.family == "compile" and getattr(method, "backend", "inductor") != "inductor":
            raise ConflictError(f"{cache.name} beside {method}: that one captures a network once, without its two ways.", hint="compile")
