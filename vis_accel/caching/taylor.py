"""TaylorSeer: what the blocks of a transformer add to its stream is forecast from the last full calls.

Paper    Liu et al. 2025, arXiv:2503.06923. Order 0 at an equal plan is FORA: Selvaraju et al. 2024, arXiv:2407.01425.
Forecast of what each branch (attention, cross-attention, feed-forward) puts out, before its gate: norms, gates and modulation are
         computed afresh, so that the stream of the call itself goes through. With the last m + 1 full calls at times t_0 .. t_m,
             F(t) = sum_j w_j F(t_j),    w_j = prod_{i != j} (t - t_i) / (t_j - t_i),
         the polynomial of degree m through them: exact for features that are one. m is at most `order` and grows with history.
Time     t = sigma or log sigma of the clock's levels, in which solvers work (lambda = -log sigma gives what log sigma does), never the
         index of the step: steps are seldom even in it. On usual schedules steps of sigma shrink along the run, so that a forecast
         reaches less far than the nodes lie apart and its weights stay small; steps of log sigma grow at the end. On the bundled
         DiT sigma came nearer, the more so the higher the order.
Plan     full are the first three calls, then every `interval`-th, and the last two; or `full`, named. An infinite noise level (the
         first of a flow model) is no time to forecast from: its call is full and not remembered.
Cost     a cheap call costs norms, modulation and the forecast: (m + 1) multiply-adds an element. Memory: order + 1 outputs of each branch.
         Weights are Python floats, sums are float32 whatever the network computes in.
Differs  the paper's weights k^i / i! of backward differences are exact up to m = 1 only, and count steps; Newton's through the same
         nodes, which this sum is, are exact for every m on every spacing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from vis_accel.caching.calls import Past
from vis_accel.caching.gate import Gate
from vis_accel.caching.planned import Planned
from vis_accel.caching.transformers import KNOWN, blocks_of, branches_of
from vis_accel.clock import Moment
from vis_accel.handle import Handle
from vis_accel.method import option

__all__ = ["Taylor", "weights"]

INFINITE = 1e6  # from here a noise level stands for infinity
FIRST = 3  # calls at the beginning that are always full: the noisiest steps decide the most, and a forecast needs history


@dataclass(frozen=True, kw_only=True)
class Taylor(Planned):
    """Forecast branches of a transformer.

    Attributes:
        order: degree of the polynomial; 0 reuses the last outputs as they are.
        time: the variable it is a polynomial of.
    """

    name: ClassVar[str] = "taylor"
    known: ClassVar[tuple[str, ...]] = KNOWN
    others: ClassVar[str] = "deepcache"

    order: int = option(2, "the degree of the polynomial through the last full calls", low=0, high=3)
    time: Literal["sigma", "log-sigma"] = option("sigma", "the variable of the polynomial")

    @property
    def depth(self) -> int:
        return self.order + 1

    def due(self, moment: Moment, past: Past) -> bool:
        """The first calls are full too, unless the full ones are named or all are."""
        return super().due(moment, past) or (self.full is None and moment.index < FIRST)

    def serve(self, moment: Moment, past: Past) -> Sequence[Any] | None:
        nodes = [node for node in past.nodes if node.sigma < INFINITE]
        if not nodes or self.due(moment, past):
            return None
        time = math.log if self.time == "log-sigma" else float
        factors = weights([time(node.sigma) for node in nodes], time(moment.sigma))
        return [tree_map(lambda *parts: _sum(factors, parts), *(node.made[i] for node in nodes)) for i in range(len(nodes[0].made))]

    def install(self, handle: Handle, network: Any, gate: Gate) -> None:
        for block in blocks_of(network):
            branches = branches_of(block)
            for branch in branches:
                gate.add_source(handle, branch)
            if not branches:  # Flux's single blocks: one product for both branches
                gate.add_residual_source(handle, block)


def weights(times: Sequence[float], at: float) -> list[float]:
    """Lagrange's: the value at `at` of the polynomial through (times[j], F_j) is the sum of weights[j] F_j. Times must differ."""
    return [math.prod((at - t) / (own - t) for i, t in enumerate(times) if i != j) for j, own in enumerate(times)]


def _sum(factors: Sequence[float], parts: Sequence[Tensor]) -> Tensor:
    """Weighted sum in float32 (float64 for float64), in the dtype of the parts; a single part is returned as it is."""
    if len(parts) == 1 or factors[-1] == 1:
        return parts[-1]
    wide = torch.promote_types(parts[0].dtype, torch.float32)
    total = parts[0].to(wide) * factors[0]
    for factor, part in zip(factors[1:], parts[1:], strict=True):
        total = total.add_(part.to(wide), alpha=factor)
    return total.to(parts[0].dtype)
