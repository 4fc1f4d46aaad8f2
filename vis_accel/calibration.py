"""What a target is run on when a method has to look at a run of it: a pipeline makes images, a network looks at some.

Pipeline  a `Job`, or what can be guessed: every class it has in turn. Seeds lie far from those that are measured.
Network   batches of its inputs, or the calibration images that ship with a bundled model: of the training images set aside.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from vis_accel.errors import UsageError
from vis_accel.generation import Job, default_steps, generate

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Calibration", "Exercise", "Progress", "exercise", "nothing"]

Progress: TypeAlias = Callable[[str, int, int], None]
Calibration: TypeAlias = "Job | Tensor | Sequence[Tensor]"

FAR = 10_000_000  # added to the seed of a job: images that are measured begin at 0
BATCH = 32
STEPS = 50  # at most, where nobody says how many: enough to meet every noise level


class Exercise:
    """Runs a target on about as many images as it is given; raises UsageError where none are known.

    Args:
        run: does so.
        told: says in a line on what, exactly: what comes out of a run depends on the target, the recipe and this.
    """

    def __init__(self, run: Callable[[int], None], told: Callable[[], str]) -> None:
        self.run, self.told = run, told

    def __call__(self, count: int) -> None:
        self.run(count)


def nothing(what: str, done: int, total: int) -> None:
    """Tells nobody."""


def exercise(target: Any, view: Any, given: Calibration | None, progress: Progress = nothing) -> Exercise:
    """What methods that look at a run of `target` let it do.

    Raises:
        UsageError: a calibration that is not for this kind of target.
    """
    if hasattr(view, "install_scheduler"):
        if given is not None and not isinstance(given, Job):
            raise UsageError(
                "A pipeline is calibrated on images it makes.", hint="calibration=Job(prompts=(...,)) or Job(class_labels=...)"
            )
        return Exercise(lambda count: _generate(target, given, count, progress), lambda: str(_guessed(target) if given is None else given))
    if isinstance(given, Job):
        raise UsageError("A job is for pipelines; a network is calibrated on images.", hint="calibration=batch, a tensor of its inputs")
    return Exercise(
        lambda count: _look(target, _bundled(view) if given is None else given, count),
        lambda: _hash(_bundled(view) if given is None else given),
    )


def _generate(pipeline: Any, given: Job | None, count: int, progress: Progress) -> None:
    job = _guessed(pipeline) if given is None else given
    job.check(pipeline)
    job = replace(job, seed=job.seed + FAR)
    for start in range(0, count, BATCH):
        progress("calibration images", start, count)
        generate(pipeline, job, range(start, min(start + BATCH, count)))
    progress("calibration images", count, count)


def _guessed(pipeline: Any) -> Job:
    """Every class in turn, for a pipeline that takes classes; else nothing but seeds."""
    takes = inspect.signature(type(pipeline).__call__).parameters
    if "prompt" in takes:
        kind = type(pipeline).__name__
        raise UsageError(f"A {kind} is calibrated on images of prompts, and none were given.", hint="calibration=Job(prompts=(...,))")
    steps = min(default_steps(pipeline) or STEPS, STEPS)
    if "class_labels" not in takes:
        return Job(steps=steps)
    known = getattr(pipeline, "labels", None)
    labels = sorted(set(known.values())) if known else range(pipeline.transformer.config.num_embeds_ada_norm)
    return Job(class_labels=tuple(labels), steps=steps)


def _look(network: Any, given: Tensor | Sequence[Tensor], count: int) -> None:
    import torch

    seen = 0
    with torch.no_grad():
        for batch in [given] if isinstance(given, torch.Tensor) else given:
            network(batch[: count - seen])
            seen += len(batch)
            if seen >= count:
                return


def _hash(given: Tensor | Sequence[Tensor]) -> str:
    import torch

    sha = hashlib.sha256()
    for batch in [given] if isinstance(given, torch.Tensor) else given:
        sha.update(str((tuple(batch.shape), batch.dtype)).encode())
        sha.update(batch.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _bundled(view: Any) -> list[Tensor]:
    """The calibration images of the bundled model this network is, ready for it."""
    from vis_accel.zoo import bundled
    from vis_accel.zoo.labelled import CALIBRATION_IMAGES, Preparation, Prepared, bundled_images

    name = bundled.name_of(view.model)
    images = None if name is None else bundled_images(name, CALIBRATION_IMAGES)
    if images is None:
        raise UsageError(
            f"No images are known on which this {type(view.model).__name__} could be calibrated.",
            hint="accelerate(model, recipe, calibration=batch), --calibration DIR, or int8(activations='dynamic')",
        )
    preparation, like = Preparation.of(view.model), next(view.model.parameters())
    return [preparation.normalised(Prepared(images, preparation).pixels(0, len(images)), like)]
