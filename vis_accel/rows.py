"""The parts of a row that do not depend on how many images it has: what it counts, how fast it is, who measured it where."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from vis_accel.contenders import Contender, Stage
from vis_accel.errors import NoEffectError, RunError
from vis_accel.eval.counters import CallCounter, WorkCounter
from vis_accel.eval.speed import Timings, median_interval
from vis_accel.eval.yardstick import quantity
from vis_accel.generation import generate
from vis_accel.machine import commit, machine, versions
from vis_accel.record import Speed

__all__ = ["count", "now", "refuse_idle", "speed", "where"]


def count(stage: Stage, contender: Contender) -> dict[str, int | float | None]:
    """Calls, rows and multiply-accumulates of the denoiser for one image, counted while two images are made, each call as it is.

    Raises:
        NoEffectError: the denoiser was never called, or a method did nothing.
        RunError: no multiplication could be counted.
    """
    denoiser = stage.view.denoiser
    with stage.countable(contender), CallCounter(denoiser) as counter, WorkCounter(denoiser) as work:
        generate(stage.pipeline, contender.job, range(2))
    name = type(denoiser).__name__
    if not counter.calls:
        raise NoEffectError(f"{contender.label} made images without calling the {name}.")
    if not work.macs:
        raise RunError(f"No multiplication of {name} could be counted.", hint="count the network before it is quantized")
    refuse_idle(contender)
    return {"calls": counter.calls, "nfe": counter.rows / 2, "GMACs": round(work.macs / 2 / 1e9, 4)}


def refuse_idle(contender: Contender) -> None:
    """Raises NoEffectError if a method of the contender reports that it had no effect in the runs so far."""
    reason = None if contender.handle is None else contender.handle.report().get("no effect")
    if reason is not None:
        raise NoEffectError(f"{contender.label} did nothing: {reason}.", hint="other options, or leave it out")


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
