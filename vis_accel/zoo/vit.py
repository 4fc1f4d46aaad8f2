"""The architecture of the bundled vision transformer: a stock timm VisionTransformer for 32 x 32 images, with timm's own stem.

Three 3 x 3 convolutions (Xiao et al. 2021, "Early convolutions help transformers see better", arXiv:2106.14881) take 32 x 32 pixels to
an 8 x 8 grid: patches of 4 pixels, 64 tokens and the class token, then plain pre-norm blocks. Like every timm model it wants images
normalised by `pretrained_cfg["mean"]` and `["std"]`.

Shapes   images B x 3 x 32 x 32, normalised; logits B x classes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

__all__ = ["build_vit"]


def build_vit(
    *,
    width: int = 128,
    depth: int = 9,
    heads: int = 4,
    classes: int = 10,
    stem: tuple[int, int, int] = (32, 64, 128),
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465),
    std: tuple[float, float, float] = (0.247, 0.2435, 0.2616),
) -> Any:
    """A fresh network.

    Args:
        width, depth, heads: of the transformer.
        classes: number of classes.
        stem: channels of the convolutions.
        mean, std: what images are normalised by, per channel, on the scale [0, 1]; recorded in `pretrained_cfg`.
    """
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer
    from timm.models.vision_transformer_hybrid import ConvStem

    convolutions = ConvStem(depth=len(stem), channels=tuple(stem), stride=(1, 2, 2))
    model = VisionTransformer(
        img_size=32, patch_size=1, num_classes=classes, embed_dim=width, depth=depth, num_heads=heads,
        embed_layer=partial(HybridEmbed, backbone=convolutions),
    )  # fmt: skip
    size = {"input_size": (3, 32, 32), "num_classes": classes, "interpolation": "bilinear", "crop_pct": 1.0}
    model.pretrained_cfg = size | {
        "mean": tuple(mean),
        "std": tuple(std),
        "first_conv": "patch_embed.backbone.0.conv",
        "classifier": "head",
    }
    model.default_cfg = model.pretrained_cfg  # timm's older name of it, which its data helpers still read
    return model
