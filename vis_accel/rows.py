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

__all__ = ["count", "notes", "now", "refuse_idle", "speed", "where"]


def count(stage: Stage, contender: Contender) -> dict[str, int | float | None]:
    """Calls, rows and multiply-accumulates of the denoiser for one image, counted while two images are made.

    The work of a stock row's calls is that of the first; under a recipe each call is counted as it is, since they may differ.

    Raises:
        NoEffectError: the denoiser was never called, or a method did nothing.
        RunError: no multiplication could be counted.
    """
    denoiser, name = stage.view.denoiser, type(stage.view.denoiser).__name__
    seen, work = list[tuple[Any, Any]](), 0
    with stage.countable(contender):
        with CallCounter(denoiser) as counter:
            if contender.stock:
                _generate_two(stage, contender, seen)
            else:
                work = _work_of_all_calls(stage, contender)
        if seen:  # counting takes time, and a stock row may make a thousand equal calls: the first stands for all
            work = macs(denoiser, *seen[0][0], **seen[0][1]) * counter.calls
    if not counter.calls:
        raise NoEffectError(f"{contender.label} made images without calling the {name}.")
    if not work:
        raise RunError(f"No multiplication of {name} could be counted.", hint="count the network before it is quantized")
    refuse_idle(contender)
    return {"calls": counter.calls, "nfe": counter.rows / 2, "GMACs": round(work / 2e9, 4)}


def _work_of_all_calls(stage: Stage, contender: Contender) -> int:
    """Multiply-accumulates of two images."""
    with WorkCounter(stage.view.denoiser) as work:
        generate(stage.pipeline, contender.job, range(2))
    return work.macs


def _generate_two(stage: Stage, contender: Contender, seen: list[tuple[Any, Any]]) -> None:
    """Makes two images, and notes the arguments of the first call of the denoiser."""

    def note(module: Any, args: Any, kwargs: Any) -> None:
        if not seen:
            seen.append((args, kwargs))

    hook = stage.view.denoiser.register_forward_pre_hook(note, with_kwargs=True)
    try:
        generate(stage.pipeline, contender.job, range(2))
    finally:
        hook.remove()


def refuse_idle(contender: Contender) -> None:
    """Raises NoEffectError if a method of the contender reports that it had no effect in the runs so far."""
    reason = None if contender.handle is None else contender.handle.report().get("no effect")
    if reason is not None:
        raise NoEffectError(f"{contender.label} did nothing: {reason}.", hint="other options, or leave it out")


def notes(contender: Contender) -> tuple[str, ...]:
    """What the methods of a row say they did, in lines."""
    found = [] if contender.handle is None else [f"{name}: {value}" for name, value in contender.handle.report().items()]
    return tuple([*found, "simulated in float: no speed"] if contender.recipe.simulated else found)


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
