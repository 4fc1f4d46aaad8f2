"""Knots found for one model and one solver: dynamic programming over the errors of single steps from a teacher's trajectory.

Paper    Chen et al. 2024, arXiv:2407.05078 (GITS), sec. 3.3: a table of the errors of single jumps between the knots of a fine grid, and
         the path of least total error through it, by dynamic programming.
Cost     of a step j -> k after i -> j: the root mean square, over images and pixels, between what the solver makes of the teacher's exact
         points and the teacher's point at k, divided by sqrt(1 + sigma_k^2): the noisier a point, the more of an error there is forgotten.
Differs  the paper's table holds Euler's error for every solver and its distance to a chord; here it is the solver's own step, with one
         evaluation of history, so that a solver of second order gets the knots that suit second order. Solvers with a longer history are
         searched with one, and those that evaluate between the knots are refused: the teacher has no point there.
Shapes   K + 1 knots, the last 0; points x and D are n x ..., one pair for each knot but the last, which has x alone.
Size     K^3 / 6 steps of the solver, no call of the network.
Then     sums of single errors know nothing of how one step's error meets the next. `refine` moves the inner knots, in log sigma and by
         steps that halve, while the error of whole runs falls (compass search; Kolda, Lewis and Torczon 2003, SIAM Review 45(3), sec. 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.samplers import schedules
from vis_accel.samplers.driver import plan, sample
from vis_accel.samplers.solver import Evaluation, Solver

__all__ = ["StepErrors", "Trajectory", "best_path", "check_searchable", "knots_of", "path_cost", "refine", "stacked", "step_errors"]

Table = dict[tuple[int, int], float]
Triples = dict[tuple[int, int, int], float]


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A teacher's path.

    Attributes:
        sigmas: K + 1 knots, the last 0.
        points: x at each knot, data scale 1; K + 1 tensors n x ....
        denoised: D at each knot but the last; K tensors.
    """

    sigmas: tuple[float, ...]
    points: tuple[Tensor, ...]
    denoised: tuple[Tensor, ...]

    def __post_init__(self) -> None:
        schedules.check(self.sigmas)
        if len(self.points) != len(self.sigmas) or len(self.denoised) != len(self.sigmas) - 1:
            raise UsageError(f"{len(self.sigmas)} knots need as many points and one D fewer; got {len(self.points)}, {len(self.denoised)}.")

    def first(self, count: int) -> Trajectory:
        """That of the first `count` images."""
        return Trajectory(self.sigmas, tuple(x[:count] for x in self.points), tuple(d[:count] for d in self.denoised))


@dataclass(frozen=True)
class StepErrors:
    """Errors of single steps of one solver, by the numbers of the knots.

    Attributes:
        first: (0, k): a run's first step, without history.
        later: (i, j, k): the step j -> k after i -> j.
        last: the number of the last knot.
    """

    first: Table
    later: Triples
    last: int


def step_errors(solver: Solver, path: Trajectory) -> StepErrors:
    """The table of the solver's errors along `path`.

    Raises:
        NotApplicableError: a solver that evaluates between the knots, or draws noise.
    """
    check_searchable(solver)
    solver = _full_order(solver)
    last = len(path.sigmas) - 1
    later = {(i, j, k): _error(solver, path, j, k, i) for i in range(last) for j in range(i + 1, last) for k in range(j + 1, last + 1)}
    return StepErrors({(0, k): _error(solver, path, 0, k, None) for k in range(1, last + 1)}, later, last)


def check_searchable(solver: Solver) -> None:
    """Refuses a solver that asks for more than one evaluation a step, or draws noise: its steps have no error a table could hold.

    Raises:
        NotApplicableError: for these.
    """
    hint = "search for dpm, unipc, ipndm or deis"

    def refuse(like: Tensor) -> Tensor:
        raise NotApplicableError(f"{solver.name} draws fresh noise, so its steps have no path to be near to.", hint=hint)

    knots, zeros = (4.0, 2.0, 1.0, 0.0), torch.zeros(1, 1)
    if len(plan(solver, knots)) != len(knots) - 1:
        raise NotApplicableError(f"{solver.name} evaluates between the knots, where the teacher's path has no points.", hint=hint)
    sample(lambda x, _: x, solver, zeros, knots, noise=refuse)


def best_path(errors: StepErrors, calls: int, *, power: float = 1.0) -> tuple[int, ...]:
    """The numbers of `calls` + 1 knots, from 0 to the last, with the least sum of error^power.

    Raises:
        UsageError: more calls than the grid has steps, or fewer than one.
    """
    if not 1 <= calls <= errors.last:
        raise UsageError(f"A path over {errors.last} steps has 1 .. {errors.last} calls; got {calls}.")
    last = errors.last
    # best[(i, j)]: least cost from j to the end in the calls that are left, after a step i -> j; ahead: the knot after j on that path.
    best: dict[tuple[int, int], float] = {(i, last): 0.0 for i in range(last)}
    ahead: list[dict[tuple[int, int], int]] = []
    for _ in range(calls - 1):
        found: dict[tuple[int, int], float] = {}
        choice: dict[tuple[int, int], int] = {}
        for (i, j, k), error in errors.later.items():
            cost = error**power + best.get((j, k), math.inf)
            if cost < found.get((i, j), math.inf):
                found[i, j], choice[i, j] = cost, k
        best = found
        ahead.append(choice)
    start = min((k for k in range(1, last + 1) if (0, k) in best), key=lambda k: errors.first[0, k] ** power + best[0, k])
    path = [0, start]
    for choice in reversed(ahead):
        path.append(choice[path[-2], path[-1]])
    return tuple(path)


def refine(
    error: Callable[[tuple[float, ...]], float], knots: Sequence[float], *, evaluations: int, step: float = 0.3, least: float = 0.02
) -> tuple[tuple[float, ...], float]:
    """Moves the inner knots to where a run over them errs least.

    Args:
        error: of a run over these knots.
        knots: where to begin; the first and the last stay, and so does a 0.
        evaluations: of `error`, at most.
        step: the first move, in log sigma.
        least: the smallest.

    Returns:
        The best knots tried, those given among them, and their error.
    """
    best = tuple(knots)
    found, left = error(best), evaluations - 1
    inner = range(1, len(best) - 1)
    while step >= least and left > 0:
        before = found
        for place in inner:
            for factor in (math.exp(step), math.exp(-step)):
                tried = (*best[:place], float(f"{best[place] * factor:.6g}"), *best[place + 1 :])
                if left <= 0 or any(a <= b for a, b in pairwise(tried)):
                    continue
                left -= 1
                if (value := error(tried)) < found:
                    best, found = tried, value
                    break
        if found == before:
            step /= 2
    return best, found


def path_cost(errors: StepErrors, path: Sequence[int], *, power: float = 1.0) -> float:
    """What `best_path` minimises, of one path."""
    later = zip(path, path[1:], path[2:], strict=False)
    return float(errors.first[path[0], path[1]] ** power + sum(errors.later[triple] ** power for triple in later))


def _full_order(solver: Solver) -> Solver:
    """Without the lower orders of the last steps: every step of the table is a run of its own, and would count as the last."""
    has = {spec.name for spec in fields(solver)}
    options: dict[str, Any] = {"lower_order_final": False} if "lower_order_final" in has else {}
    return replace(solver, steps=None, **options)


def _error(solver: Solver, path: Trajectory, j: int, k: int, before: int | None) -> float:
    sigmas = path.sigmas
    history = [] if before is None else [(sigmas[before], path.points[before], path.denoised[before])]
    run = solver.solve(path.points[j], (sigmas[j], sigmas[k]), noise=None, history=history)
    x, _ = next(run)
    try:
        run.send((x, Evaluation(path.denoised[j])))
    except StopIteration as end:
        made: Tensor = end.value
        return float((made - path.points[k]).square().mean().sqrt()) / math.sqrt(1 + sigmas[k] ** 2)
    raise NotApplicableError(f"{solver.name} asks for a second evaluation in one step.")


def knots_of(path: Sequence[int], sigmas: Sequence[float]) -> tuple[float, ...]:
    """The knots with these numbers, rounded to six digits, so that a recipe that is printed is the recipe that was measured."""
    rounded = tuple(float(f"{sigmas[i]:.6g}") for i in path)
    first = sigmas[path[0]]
    knots = (min(rounded[0], first), *rounded[1:])  # never above what the model knows
    if any(a <= b for a, b in pairwise(knots)):
        raise UsageError("Knots this close cannot be told apart in print.", hint="fewer calls, or a coarser grid")
    return knots


def stacked(parts: Sequence[Trajectory]) -> Trajectory:
    """Several batches of one grid as one trajectory."""
    columns = zip(*(part.points for part in parts), strict=True), zip(*(part.denoised for part in parts), strict=True)
    points, denoised = (tuple(torch.cat(column) for column in side) for side in columns)
    return Trajectory(parts[0].sigmas, points, denoised)
