"""The bundled vision transformer under a name in timm's registry, so that what is fine-tuned from it is an ordinary timm folder.

`timm.create_model("local-dir:FOLDER")` finds `cifar10_vit` once this module is imported; `timm_folder.load` imports it.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from vis_accel.errors import UsageError
from vis_accel.zoo.vit import build_vit

__all__ = ["ARCHITECTURE", "cifar10_vit"]

ARCHITECTURE = "cifar10_vit"

default_cfgs = generate_default_cfgs(
    {
        ARCHITECTURE: {
            "input_size": (3, 32, 32), "num_classes": 10, "fixed_input_size": True, "interpolation": "bilinear", "crop_pct": 1.0,
            "mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616), "first_conv": "patch_embed.backbone.0.conv",
            "classifier": "head",
        }
    }
)  # fmt: skip


@register_model  # type: ignore[untyped-decorator]
def cifar10_vit(pretrained: bool = False, **options: Any) -> Any:
    """The architecture of the bundled cifar10-vit, for any number of classes."""
    return build_model_with_cfg(_network, ARCHITECTURE, pretrained, **options)


def _network(*, num_classes: int = 10, img_size: Any = 32, in_chans: int = 3, **others: Any) -> Any:
    side = img_size if isinstance(img_size, int) else img_size[0]
    if side != 32 or in_chans != 3 or others:
        raise UsageError(f"{ARCHITECTURE} is built for 3 x 32 x 32 images; got {in_chans} x {side} x {side} and {others}.")
    return build_vit(classes=num_classes)
