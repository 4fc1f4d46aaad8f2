"""What is generated, apart from how: conditions, guidance, size and seeds, turned into the arguments of a stock pipeline.

Image i of a job is made from seed `job.seed + i` by a generator of its own and gets condition i, counted round; so it is the same image in
every batch, under every recipe that starts from the same noise, and in every process.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vis_accel.errors import RunError, UsageError

__all__ = ["Job", "default_steps", "generate"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What is generated.

    Attributes:
        seed: of image 0.
        class_labels: for pipelines that take classes; image i gets label i modulo their number.
        prompts: for pipelines that take text; likewise.
        guidance_scale: None: the pipeline's default.
        steps: the call's number of steps, which a recipe's own wins over; None: the pipeline's default.
        height, width: in pixels; None: the pipeline's default.
    """

    seed: int = 0
    class_labels: tuple[int, ...] = ()
    prompts: tuple[str, ...] = ()
    guidance_scale: float | None = None
    steps: int | None = None
    height: int | None = None
    width: int | None = None

    def check(self, pipeline: Any) -> None:
        """Refuses what the pipeline does not take, before anything is computed.

        Raises:
            UsageError: a condition, guidance or size the pipeline has no argument for; a condition it needs and does not get; a label
                it has no class for.
        """
        takes = _parameters(pipeline)
        given = {"class_labels": self.class_labels, "prompt": self.prompts, "guidance_scale": self.guidance_scale is not None}
        given |= {"height": self.height is not None, "width": self.width is not None}
        for name, there in given.items():
            if there and name not in takes:
                raise UsageError(f"{type(pipeline).__name__} takes no {name}.", hint=f"leave out --{name.replace('_', '-')}")
        for name, option in (("class_labels", "--class-labels 0,1,2"), ("prompt", "--prompt TEXT")):
            if name in takes and takes[name].default is inspect.Parameter.empty and not given[name]:
                raise UsageError(f"{type(pipeline).__name__} needs {name}.", hint=f"add {option}")
        if "prompt" in takes and not self.prompts:
            raise UsageError(f"{type(pipeline).__name__} needs a prompt.", hint="add --prompt TEXT")
        known = getattr(pipeline, "labels", None)
        if self.class_labels and known:
            wrong = [label for label in self.class_labels if label not in known.values()]
            if wrong:
                last = max(known.values())
                raise UsageError(f"{type(pipeline).__name__} has no class {wrong[0]}; its classes are {min(known.values())} to {last}.")
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < 1000:
            raise UsageError(f"guidance_scale must be at least 0 and below 1000; got {self.guidance_scale}.")

    def arguments(self, pipeline: Any, indices: Sequence[int]) -> dict[str, Any]:
        """Keyword arguments of the pipeline's call for the images `indices`."""
        takes = _parameters(pipeline)
        generators = [torch.Generator().manual_seed(self.seed + index) for index in indices]  # on the CPU: one image on every device
        call: dict[str, Any] = {"generator": generators, "output_type": "pt"}
        if "batch_size" in takes:  # the unconditional pixel pipelines, which know no "pt"
            call |= {"batch_size": len(indices), "output_type": "np"}
        if self.class_labels:
            call["class_labels"] = [self.class_labels[index % len(self.class_labels)] for index in indices]
        if self.prompts:
            call["prompt"] = [self.prompts[index % len(self.prompts)] for index in indices]
        optional = {"guidance_scale": self.guidance_scale, "num_inference_steps": self.steps, "height": self.height, "width": self.width}
        return call | {name: value for name, value in optional.items() if value is not None and name in takes}

    def labels(self, count: int) -> Tensor:
        """Class labels of images 0 .. count-1 (int64)."""
        return torch.tensor([self.class_labels[index % len(self.class_labels)] for index in range(count)])


def generate(pipeline: Any, job: Job, indices: Sequence[int]) -> Tensor:
    """Generates the images `indices` of the job: uint8, B x 3 x H x W, on the CPU.

    Raises:
        RunError: pixels that are not finite.
    """
    images = pipeline(**job.arguments(pipeline, indices)).images
    pixels = images if isinstance(images, Tensor) else torch.from_numpy(images).permute(0, 3, 1, 2)
    if not bool(torch.isfinite(pixels).all()):
        first = next(i for i, image in zip(indices, pixels, strict=True) if not bool(torch.isfinite(image).all()))
        message = f"The image of seed {job.seed + first} has pixels that are not finite."
        raise RunError(message, hint="a lower guidance or another sampler may help")
    return (pixels.float() * 255).round().clamp(0, 255).to(torch.uint8).cpu()


def default_steps(pipeline: Any) -> int | None:
    """The number of steps the pipeline takes when nothing is said."""
    parameter = _parameters(pipeline).get("num_inference_steps")
    return parameter.default if parameter is not None and isinstance(parameter.default, int) else None


def _parameters(pipeline: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(type(pipeline).__call__).parameters)
