"""Looks on while a recipe is put on and while a stock pipeline runs: counts its calls, stops it between two of them, and shows the
pictures as they become clear."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vis_accel.app.variants import Variants
from vis_accel.app.worker import Task
from vis_accel.errors import UsageError
from vis_accel.eval.counters import CallCounter
from vis_accel.pipelines import PipelineView
from vis_accel.recipe import Recipe
from vis_accel.swaps import set_item

__all__ = ["Progress", "Watch", "prepare", "watched"]

_PREVIEW_PERIOD = 0.3  # seconds: three a second look alive, and leave a slow browser time for its buttons


class Progress(NamedTuple):
    """How far a run is.

    Attributes:
        done, total: calls of the network; total 0: not known yet.
        pictures: uint8, B x 3 x H x W, what the pictures would be if it ended now; None: none to show.
        stage: which part of the request this is.
        before: the result of the part before it, where there is one.
    """

    done: int
    total: int
    pictures: Tensor | None
    stage: str
    before: Any = None


class Watch:
    """What was seen of one run.

    Attributes:
        calls, rows: of the denoiser.
        looking: seconds spent on previews, which are no part of the run's time.
    """

    def __init__(self, view: PipelineView, task: Task, count: int, stage: str, report: Callable[[Progress], None] | None) -> None:
        self.view, self.task, self.count, self.stage, self.tell = view, task, count, stage, report
        self.calls = self.rows = 0
        self.looking = 0.0
        self._last = 0.0

    def before_call(self, module: Any, args: Any) -> None:
        """Before each evaluation: stops the run if nobody wants it any more."""
        self.task.check()

    def after_step(self, clear: Tensor) -> None:
        """After each of the scheduler's steps; `clear` is its estimate of the pictures, or of their latents."""
        self.calls += 1
        if self.tell is None:
            return
        start = time.perf_counter()
        pictures = None
        if start - self._last > _PREVIEW_PERIOD:
            pictures, self._last = decode(self.view, clear[: self.count]), start
        self.tell(Progress(self.calls, len(self.view.pipeline.scheduler.timesteps), pictures, self.stage))
        self.looking += time.perf_counter() - start


def prepare(variants: Variants, recipe: Recipe, task: Task, seconds: float) -> None:
    """Makes a recipe ready; some run the model for that (int8, q-diffusion), and are stopped at any module like the run itself.

    Args:
        variants: of the model.
        recipe: to be ready.
        task: whose wish decides whether that goes on.
        seconds: at most.

    Raises:
        UsageError: it takes longer.
    """
    if recipe in variants or not recipe.methods:
        return
    task.report(Progress(0, 0, None, "preparing"))
    thread, end = threading.get_ident(), time.monotonic() + seconds

    def look(module: Any, args: Any) -> None:
        if threading.get_ident() != thread:
            return
        task.check()
        if time.monotonic() > end:
            raise UsageError(f"{recipe} takes more than {seconds:g} seconds to prepare, which is too long for this page.")

    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        variants.prepare(recipe)
    finally:
        hook.remove()


@contextmanager
def watched(
    view: PipelineView, task: Task, *, count: int = 0, stage: str = "", report: Callable[[Progress], None] | None = None
) -> Iterator[Watch]:
    """Looks on while the context is open.

    Args:
        view: of the pipeline, with its recipe on.
        task: whose wish decides whether the run goes on.
        count: of images; a guided pipeline's scheduler sees twice as many rows.
        stage: for the reports.
        report: takes them; None: the run is only counted and can be stopped.
    """
    watch = Watch(view, task, count, stage, report)
    scheduler = view.pipeline.scheduler
    advance = scheduler.step

    @functools.wraps(advance)  # pipelines look at its signature to see what it takes
    def step(*args: Any, **kwargs: Any) -> Any:
        found = advance(*args, **kwargs)
        clear = getattr(found, "pred_original_sample", None)
        watch.after_step(found[0] if clear is None else clear)
        return found

    undo = set_item(vars(scheduler), "step", step)
    hook = view.denoiser.register_forward_pre_hook(watch.before_call)
    try:
        with CallCounter(view.denoiser) as counter:
            yield watch
    finally:
        hook.remove()
        undo()
    watch.calls, watch.rows = counter.calls, counter.rows


@torch.no_grad()
def decode(view: PipelineView, clear: Tensor) -> Tensor | None:
    """Pictures (uint8, B x 3 x H x W) of an estimate; None for latents of a form that is not known here."""
    if not view.traits.latent:
        return _as_pictures(clear) if clear.ndim == 4 and clear.shape[1] == 3 else None
    vae = view.pipeline.vae
    if clear.ndim != 4 or clear.shape[1] != vae.config.latent_channels:
        return None
    latents = clear.to(vae.dtype) / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0)
    return _as_pictures(vae.decode(latents).sample)


def _as_pictures(values: Tensor) -> Tensor:
    """From -1 .. 1 to 8 bits."""
    return ((values.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()
