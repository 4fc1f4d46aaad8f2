"""The parts of a row that do not depend on how many images it has: what it counts, how fast it is, who measured it where."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

from vis_accel.contenders import Contender, Stage
from vis_accel.errors import NoEffectError
from vis_accel.eval.counters import CallCounter, macs
from vis_accel.eval.speed import Timings, median_interval
from vis_accel.eval.yardstick import quantity
from vis_accel.generation import generate
from vis_accel.machine import commit, machine, versions
from vis_accel.record import Speed

__all__ = ["count", "now", "speed", "where"]


def count(stage: Stage, contender: Contender) -> dict[str, int | float | None]:
    """Calls, rows and multiply-accumulates of the denoiser for one image, counted while two images are made.

    The work of a call is that of the first: a method whose calls differ in work counts its own.

    Raises:
        NoEffectError: the denoiser was never called.
    """
    denoiser, seen = stage.view.denoiser, list[tuple[Any, Any]]()
    with stage.countable(contender):
        with CallCounter(denoiser) as counter:
            hook = denoiser.register_forward_pre_hook(lambda module, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
            try:
                generate(stage.pipeline, contender.job, range(2))
            finally:
                hook.remove()
        if not seen:
            raise NoEffectError(f"{contender.label} made images without calling the {type(denoiser).__name__}.")
        args, kwargs = seen[0]
        work = macs(denoiser, *args, **kwargs) * counter.calls / 2
    return {"calls": counter.calls, "nfe": counter.rows / 2, "GMACs": round(work / 1e9, 4)}


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
