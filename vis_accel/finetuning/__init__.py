"""Fine-tuning of any timm classifier on a folder of images, from the command line as `vis-accel finetune`.

    finetune(FinetuneOptions(model="timm/levit_128s", data=Path("pets"), output=Path("runs/levit"), epochs=10))

options.py    what may be asked for                     opening.py   the network, its size and its head
data.py       folders of images, splits                 student.py   the network as it is trained
pixels.py     decoding, in memory or from the disk      adapters.py  LoRA, DoRA, PiSSA through peft, and merging them
augment.py    crops, flips, colours, mixtures           scales.py    learning rates by depth and by kind of matrix
saved.py      the folder that is written and read       distill.py   teachers, and what a student learns from them
registered.py cifar10-vit in timm's registry            task.py      what the one trainer is given
card.py       the card                                  run.py       `finetune`
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vis_accel.finetuning.options import FinetuneOptions

if TYPE_CHECKING:
    from vis_accel.finetuning.run import Finetuned, finetune

__all__ = ["FinetuneOptions", "Finetuned", "finetune"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from vis_accel.finetuning import run  # brings PyTorch; options alone do not

    return getattr(run, name)
