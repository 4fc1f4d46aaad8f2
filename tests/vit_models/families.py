"""Tiny models of every family the view serves, with random weights that let each part matter."""

from __future__ import annotations

from typing import Any

import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

_SMALL: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 10}
_EVA = _SMALL | {"use_rot_pos_emb": True, "class_token": True}

FAMILIES: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (VisionTransformer, {}),
    "distilled": (VisionTransformerDistilled, {}),
    "deit3": (VisionTransformer, {"no_embed_class": True, "init_values": 0.5}),
    "dinov2": (VisionTransformer, {"init_values": 0.5, "reg_tokens": 4, "no_embed_class": True}),
    "clip": (VisionTransformer, {"pre_norm": True, "norm_layer": torch.nn.LayerNorm}),
    "siglip": (VisionTransformer, {"class_token": False, "global_pool": "map"}),
    "average": (VisionTransformer, {"class_token": False, "global_pool": "avg", "fc_norm": False}),
    "registers-average": (VisionTransformer, {"class_token": False, "reg_tokens": 2, "global_pool": "avgmax"}),
    "qk-norm": (VisionTransformer, {"qk_norm": True, "scale_attn_norm": True, "scale_mlp_norm": True}),
    "eva": (Eva, {"global_pool": "avg", "swiglu_mlp": True, "init_values": 0.5}),
    "eva-token": (Eva, {"global_pool": "token", "qkv_fused": False, "scale_mlp": True, "scale_attn_inner": True}),
    "dinov3": (
        Eva,
        {"global_pool": "token", "num_reg_tokens": 4, "attn_type": "rope", "qkv_bias": False, "rope_rotate_half": True, "init_values": 0.5},
    ),
    "rope-mixed": (Eva, {"global_pool": "token", "attn_type": "rope", "rope_type": "mixed", "init_values": 0.5}),
}  # fmt: skip

WITH_CLASS_TOKEN = [name for name, (_, options) in FAMILIES.items() if options.get("class_token", True)]
READING_CLASS_TOKEN = [name for name in WITH_CLASS_TOKEN if FAMILIES[name][1].get("global_pool", "token") == "token"]


def tiny(family: str, **changes: Any) -> Any:
    """A model of the family in evaluation mode, the same one each time."""
    kind, options = FAMILIES[family]
    torch.manual_seed(3)
    model = kind(**((_EVA if kind is Eva else _SMALL) | options | changes))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.0 / parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 0.3
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model.eval()


def images(count: int = 3, size: int = 32) -> torch.Tensor:
    """Random images (count x 3 x size x size)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(7))


def state(model: Any) -> dict[str, set[str]]:
    """Every name in every `__dict__` of the model's modules, hooks included."""
    found = {}
    for name, module in model.named_modules():
        tables = {key: set(value) for key, value in vars(module).items() if isinstance(value, dict)}
        found[name] = set(vars(module)) | {f"{key}:{entry}" for key, entries in tables.items() for entry in entries}
    return found
