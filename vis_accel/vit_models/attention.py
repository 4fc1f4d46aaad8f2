"""What timm's three attention layers have in common, in the parts methods need: queries, keys and values, and the way back.

    q, k, v = project(layer, x)                 B x heads x N x d each, q and k normalised and rotated as the layer does it
    y = attend(layer, q, k, v)                  softmax(q k^T / sqrt(d) + bias) v by the fused kernel
    out = finish(layer, y, x)                   B x N x C: inner norm, gate, projection, dropout

`finish(layer, attend(layer, *project(layer, x)), x)` is `layer(x)`; tests hold it to that for every family served. A token that stands for
s merged ones counts s times when the logarithm of s is added to its scores (Bolya et al. 2023, arXiv:2210.09461, eq. 1): by a mask, or by
one more feature of queries and keys (`log_size_as_feature`), which leaves the kernel without a mask.

Shapes   x B x N x C; rope (N - prefix) x 2d, or any shape with these last and leading ones that broadcast to B x heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vis_accel.errors import NotApplicableError

__all__ = [
    "LAYERS", "attend", "class_attention", "finish", "log_size_as_feature", "log_size_mask", "project", "project_prefix", "reason_against",
]  # fmt: skip

LAYERS = ("Attention", "EvaAttention", "AttentionRope")  # timm's classes whose parts are known, by exact name


def reason_against(layer: nn.Module) -> str | None:
    """Why the parts of this layer are not known here; None if they are."""
    if type(layer).__name__ not in LAYERS or not type(layer).__module__.startswith("timm."):
        return f"the attention layer {type(layer).__name__} is not one of {', '.join(LAYERS)}"
    if getattr(layer, "num_kv_groups", 1) != 1:
        return "its attention shares keys among heads (grouped queries)"
    return None


def project(layer: Any, x: Tensor, rope: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of normalised tokens."""
    if layer.qkv is None:
        parts = [linear(x) for linear in (layer.q_proj, layer.k_proj, layer.v_proj)]
    elif getattr(layer, "q_bias", None) is not None:
        bias = torch.cat((layer.q_bias, layer.k_bias, layer.v_bias))
        joint = layer.qkv(x) + bias if layer.qkv_bias_separate else functional.linear(x, layer.qkv.weight, bias)
        parts = list(joint.chunk(3, dim=-1))
    else:
        parts = list(layer.qkv(x).chunk(3, dim=-1))
    q, k, v = (_split_heads(layer, part) for part in parts)
    q, k = layer.q_norm(q), layer.k_norm(k)
    return _rotate(layer, q, rope, v), _rotate(layer, k, rope, v), v


def project_prefix(layer: Any, x: Tensor, prefix: int, rope: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """As `project`, with the queries of the first `prefix` tokens only: the prefix is never rotated.

    Raises:
        NotApplicableError: the joint projection is no plain Linear layer (an adapter, a quantised one), so its rows cannot be taken apart.
    """
    if layer.qkv is None:
        parts = [layer.q_proj(x[:, :prefix]), layer.k_proj(x), layer.v_proj(x)]
    else:
        if type(layer.qkv) is not nn.Linear or "forward" in vars(layer.qkv):
            raise NotApplicableError(f"the joint projection is a {type(layer.qkv).__name__}, whose rows cannot be taken apart.")
        weight, width = layer.qkv.weight, layer.qkv.out_features // 3
        bias: Tensor | None = layer.qkv.bias
        if getattr(layer, "q_bias", None) is not None:
            bias = torch.cat((layer.q_bias, layer.k_bias, layer.v_bias))
        first, rest = (None, None) if bias is None else (bias[:width], bias[width:])
        joint = functional.linear(x, weight[width:], rest)
        parts = [functional.linear(x[:, :prefix], weight[:width], first), *joint.chunk(2, dim=-1)]
    q, k, v = (_split_heads(layer, part) for part in parts)
    return layer.q_norm(q).type_as(v), _rotate(layer, layer.k_norm(k), rope, v), v


def attend(layer: Any, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention with an additive bias that broadcasts to B x heads x queries x keys; `scale` replaces 1 / sqrt(d)."""
    dropout = layer.attn_drop.p if layer.training else 0.0
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout, scale=scale)


def finish(layer: Any, y: Tensor, x: Tensor) -> Tensor:
    """The layer's output from the heads' (B x heads x M x d) and its input, of which the first M tokens gate."""
    count = y.shape[2]
    y = layer.norm(y.transpose(1, 2).flatten(2))
    if layer.gate is not None:
        y = y * layer.gate(x[:, :count]).sigmoid()
    out: Tensor = layer.proj_drop(layer.proj(y))
    return out


def class_attention(q: Tensor, k: Tensor, *, rows: int, scale: float, bias: Tensor | None = None) -> Tensor:
    """How much the first `rows` tokens look at each token, averaged over them and over heads: B x N, each row sums to 1.

    One product of `rows` queries with the keys: next to nothing, and it needs no attention matrix.
    """
    scores = (q[:, :, :rows] * scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    return scores.softmax(dim=-1, dtype=torch.float32).mean(dim=(1, 2))


def log_size_mask(size: Tensor, dtype: torch.dtype) -> Tensor:
    """The logarithms of sizes (B x N) as a bias (B x 1 x 1 x N), its storage a multiple of eight wide, as fused kernels want it."""
    bias = size.log().to(dtype)
    surplus = -bias.shape[1] % 8
    return functional.pad(bias, (0, surplus))[:, None, None, : bias.shape[1]]


def log_size_as_feature(q: Tensor, k: Tensor, v: Tensor, size: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values with the sizes in one more feature: (q, sqrt(d)) . (k, log s) / sqrt(d) = q . k / sqrt(d) + log s.

    All three are padded by zeros to a multiple of eight features; attend with scale = 1 / sqrt(d) of the layer, and drop what was added.
    """
    width = q.shape[-1]
    surplus = -(width + 1) % 8
    log_size = size.log().to(k.dtype)[:, None, :, None].expand(-1, k.shape[1], -1, -1)
    q = torch.cat((q, q.new_full((*q.shape[:-1], 1), width**0.5)), dim=-1)
    k = torch.cat((k, log_size), dim=-1)
    return functional.pad(q, (0, surplus)), functional.pad(k, (0, surplus)), functional.pad(v, (0, surplus + 1))


def _split_heads(layer: Any, x: Tensor) -> Tensor:
    heads: Tensor = x.unflatten(-1, (layer.num_heads, -1)).transpose(1, 2)
    return heads


def _rotate(layer: Any, x: Tensor, rope: Tensor | None, like: Tensor) -> Tensor:
    if rope is None:
        return x
    from timm.layers.pos_embed_sincos import apply_rot_embed_cat

    prefix = layer.num_prefix_tokens
    turned = apply_rot_embed_cat(x[:, :, prefix:], rope, half=getattr(layer, "rotate_half", False))
    rotated: Tensor = torch.cat((x[:, :, :prefix], turned), dim=2).type_as(like)
    return rotated
