"""The parts of a row that do not depend on how many images it has: what it counts, how fast it is, who measured it where."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from vis_accel.contenders import Contender, Stage
from vis_accel.errors import NoEffectError, RunError
from vis_accel.eval.counters import CallCounter, WorkCounter, macs
from vis_accel.eval.speed import Timings, median_interval
from vis_accel.eval.yardstick import quantity
from vis_accel.generation import generate
from vis_accel.machine import commit, machine, versions
from vis_accel.record import Speed

__all__ = ["count", "notes", "now", "speed", "where"]


def count(stage: Stage, contender: Contender) -> dict[str, int | float | None]:
    """Calls, rows and multiply-accumulates of the denoiser for one image, counted while two images are made.

    The work of a stock row's calls is that of the first; under a recipe each call is counted, since they may differ.

    Raises:
        NoEffectError: the denoiser was never called, or a cache was put on it and never hit.
    """
    stage.enter(contender)
    denoiser, seen = stage.view.denoiser, list[tuple[Any, Any]]()
    with CallCounter(denoiser) as counter:
        hook = denoiser.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
        try:
            work = _generate_two(stage, contender)
        finally:
            hook.remove()
    if not seen:
        raise NoEffectError(f"{contender.label} made images without calling the {type(denoiser).__name__}.")
    if contender.stock:
        args, kwargs = seen[0]
        work = macs(denoiser, *args, **kwargs) * counter.calls
    _check_cache(contender)
    return {"calls": counter.calls, "nfe": counter.rows / 2, "GMACs": round(work / 2e9, 4)}


def _generate_two(stage: Stage, contender: Contender) -> int:
    """Makes two images; the multiply-accumulates of all calls, 0 for a stock row: hundreds of equal calls are not worth the time."""
    if contender.stock:
        generate(stage.pipeline, contender.job, range(2))
        return 0
    with WorkCounter(stage.view.denoiser) as counter:
        generate(stage.pipeline, contender.job, range(2))
    if not counter.macs:
        raise RunError(f"No multiplication of the {type(stage.view.denoiser).__name__} under {contender.label} could be counted.")
    return counter.macs


def _check_cache(contender: Contender) -> None:
    report = {} if contender.handle is None else contender.handle.report()
    if report.get("calls reused") == 0:
        raise NoEffectError(
            f"{contender.label} reused nothing: all {report['calls in full']} calls were computed in full.",
            hint="a larger interval or threshold, or more steps",
        )


def notes(contender: Contender) -> tuple[str, ...]:
    """What the methods of the row say they did, in lines."""
    return () if contender.handle is None else tuple(f"{name}: {value}" for name, value in contender.handle.report().items())


def speed(label: str, timings: Timings, baselines: Sequence[str], batch: int) -> Speed:
    """Images per second of `label`, and its paired ratio to each baseline."""
    rates = [batch / seconds for seconds in timings.values[label]]
    return Speed(
        images_per_second=quantity(median_interval(rates), higher_is_better=True),
        spread=timings.spread(label) / timings.median(label),
        repeats=len(rates),
        batch=batch,
        ratios={base: quantity(timings.ratio(label, base), higher_is_better=True) for base in baselines if base != label},
    )


def where() -> dict[str, Any]:
    """The fields of a record that say where it was measured."""
    return {"machine": machine(), "versions": versions(), "commit": commit()}


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
