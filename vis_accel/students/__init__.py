"""Students: few-step networks distilled from a pipeline, from the command line as `vis-accel distill`.

    distill(DistillOptions(model="cifar10-dit", method="consistency", output=Path("runs/student")))

options.py   what may be asked for                         teacher.py   a pipeline as a guided denoiser, and copies of it to be trained
pool.py      the images that are noised: sampled or read   run.py       `distill`
task.py      what all students share                       train_*.py   one method each, for the one trainer
prompts.py   texts in the place of classes                 lora.py      adapters: where they go, and the file of them

The mathematics is in `vis_accel.distillation`; distilled.py puts a trained student on a pipeline.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vis_accel.students.options import DistillOptions

if TYPE_CHECKING:
    from vis_accel.students.run import Distilled, distill

__all__ = ["DistillOptions", "Distilled", "distill"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vis_accel.students import run  # brings PyTorch; options alone do not

    return getattr(run, name)
