"""Models by name: two that come with the package, folders on this machine, the Hugging Face hub, and timm.

    vis_accel.load("cifar10-dit")        a stock DiTPipeline, weights included in the package
    vis_accel.load("./my-pipeline")      a diffusers folder
    vis_accel.load("owner/name")         from the hub, or its cache when offline
    vis_accel.load("timm/vit_tiny_patch16_224")

Importing this package loads no PyTorch. The import of `load` stands here, not behind a `__getattr__`, because the submodule has that name
too: bound now, `vis_accel.zoo.load` is the function whatever is imported later.
"""

from __future__ import annotations

from vis_accel.zoo.bundled import MODELS, ModelCard, describe
from vis_accel.zoo.load import load

__all__ = ["MODELS", "ModelCard", "describe", "load"]
