"""What the library knows of a timm model: its prefix tokens, its grid, its pooling, its blocks in parts, and whether tokens may be dropped.

    v = view(timm.create_model("deit_small_patch16_224"))
    v.prefix, v.grid, v.pooling         1, (14, 14), "token"
    v.blocks[0].attention(tokens)       the first half of a block: x + drop_path1(ls1(attn(norm1(x))))

Only models on the list below are taken apart, by their exact classes: a subclass may compute something else. Every other model gets a
view with a reason in `refusal`: token methods quote it, methods that leave the blocks alone do not care.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vis_accel.errors import NotApplicableError
from vis_accel.vit_models import attention

__all__ = ["Attended", "BlockView", "Projected", "ViTView", "view"]

_MODELS = ("VisionTransformer", "VisionTransformerDistilled", "Eva")
_BLOCKS = ("Block", "EvaBlock")
_POOLINGS = ("token", "avg", "avgmax", "max", "map")
_GRIDS = {  # classes of timm that need their tokens on a grid: why
    "LevitDistilled": "its attention bias is a table over the grid and its stages subsample it",
    "Levit": "its attention bias is a table over the grid and its stages subsample it",
    "TinyVit": "it attends within windows of the grid, between convolutions",
    "EfficientFormer": "its early stages pool on the grid and its attention bias is a table over it",
    "EfficientFormerV2": "its convolutions and its attention bias are on the grid",
    "EfficientVit": "its convolutions and multi-scale linear attention are on the grid",
    "EfficientVitLarge": "its convolutions and multi-scale linear attention are on the grid",
    "EfficientVitMsra": "its convolutions and cascaded attention are on the grid",
    "FastVit": "its token mixers are convolutions on the grid",
    "EdgeNeXt": "its convolutions and attention over channels are on the grid",
    "CrossViT": "its two branches exchange class tokens of two grids",
    "CrossVit": "its two branches exchange class tokens of two grids",
    "ByobNet": "its convolutions are on the grid, and unfold it into patches for attention",
    "RepVit": "it is a convolutional network",
    "SwinTransformer": "it attends within windows of the grid",
    "SwinTransformerV2": "it attends within windows of the grid",
    "Beit": "its attention bias is a table over the grid",
    "LightViT": "it attends within windows of the grid",
    "EdgeViT": "it samples the grid and spreads the result by convolutions",
}


class Attended(NamedTuple):
    """The first half of a block: the tokens after it (B x N x C), and the queries and keys (B x heads x N x d) it was made from."""

    x: Tensor
    q: Tensor
    k: Tensor
    v: Tensor


class Projected(NamedTuple):
    """What attention works on: its input before and after the norm (B x N x C), and queries, keys and values (B x heads x N x d)."""

    x: Tensor
    normed: Tensor
    q: Tensor
    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class BlockView:
    """One transformer block in parts: (norm, attention, layer scale, drop path), then (norm, MLP, layer scale, drop path)."""

    index: int
    module: Any

    @property
    def scale(self) -> float:
        """What the products of queries and keys are multiplied by."""
        return float(self.module.attn.scale)

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return int(self.module.attn.num_heads)

    def attention(self, x: Tensor, *, rope: Tensor | None = None, bias: Tensor | None = None, size: Tensor | None = None) -> Attended:
        """x + drop_path(scale(attention(norm(x)))).

        Args:
            x: B x N x C.
            rope: the rotary embedding of the patches, as the block is given it.
            bias: added to the scores; it broadcasts to B x heads x N x N.
            size: B x N, how many tokens each stands for; counted in by one more feature of queries and keys.
        """
        found = self.project(x, rope)
        _, _, q, k, v = found
        if size is None:
            y = self.attend(q, k, v, bias=bias)
        else:
            layer = self.module.attn
            y = attention.attend(layer, *attention.log_size_as_feature(q, k, v, size), bias=bias, scale=self.scale)[..., : v.shape[-1]]
        return Attended(self.join(found, y), q, k, v)

    def project(self, x: Tensor, rope: Tensor | None = None) -> Projected:
        """What attention needs of x (B x N x C), for methods that attend in a way of their own; `join` ends what this begins."""
        normed = self.module.norm1(x)
        return Projected(x, normed, *attention.project(self.module.attn, normed, rope))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, *, bias: Tensor | None = None) -> Tensor:
        """The heads' outputs (B x heads x M x d) for M queries, by the fused kernel."""
        return attention.attend(self.module.attn, q, k, v, bias=bias)

    def join(self, found: Projected, y: Tensor, rows: Tensor | None = None) -> Tensor:
        """x + drop_path(scale(projection of the heads' outputs y)); with `rows` (B x M), for these tokens, whose outputs y then holds."""
        x, normed = found.x, found.normed
        if rows is not None:
            image = torch.arange(x.shape[0], device=x.device)[:, None]
            x, normed = x[image, rows], normed[image, rows]
        branch = attention.finish(self.module.attn, y, normed)
        joined: Tensor = x + self.module.drop_path1(self._first_scale(branch))
        return joined

    def prefix_attention(self, x: Tensor, prefix: int, *, rope: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """What `attention` gives for the first `prefix` tokens (B x prefix x C), at the cost of keys and values alone for the others."""
        block, layer = self.module, self.module.attn
        normed = block.norm1(x)
        q, k, v = attention.project_prefix(layer, normed, prefix, rope)
        branch = attention.finish(layer, attention.attend(layer, q, k, v, bias=bias), normed)
        first: Tensor = x[:, :prefix] + block.drop_path1(self._first_scale(branch))
        return first

    def feed(self, x: Tensor) -> Tensor:
        """x + drop_path(scale(mlp(norm(x))))."""
        block = self.module
        branch = block.mlp(block.norm2(x))
        if type(block).__name__ == "EvaBlock":
            branch = branch if block.gamma_2 is None else block.gamma_2 * branch
        else:
            branch = block.ls2(branch)
        out: Tensor = x + block.drop_path2(branch)
        return out

    def _first_scale(self, branch: Tensor) -> Tensor:
        block = self.module
        if type(block).__name__ == "EvaBlock":
            return branch if block.gamma_1 is None else block.gamma_1 * branch
        scaled: Tensor = block.ls1(branch)
        return scaled


@dataclass(frozen=True)
class ViTView:
    """One model, described.

    Attributes:
        model: the network.
        name: its class.
        refusal: why its tokens must all stay where they are; None if they may be dropped and merged.
        prefix: number of tokens before the patches: class, distillation, registers.
        readers: how many of them the head reads: 1, 2 with a distillation token, 0 without a class token or when patches are pooled.
        classes: how many outputs.
        grid: rows and columns of patches.
        pooling: what the head reads: "token", "avg", "avgmax", "max" or "map".
        rotary: whether blocks are given a rotary embedding.
        blocks: the transformer blocks, in order; empty where `refusal` says why.
    """

    model: Any
    name: str
    refusal: str | None
    prefix: int = 0
    readers: int = 0
    classes: int = 0
    grid: tuple[int, int] = (0, 0)
    pooling: str = ""
    rotary: bool = False
    blocks: tuple[BlockView, ...] = ()

    @property
    def patches(self) -> int:
        """Number of patches."""
        return self.grid[0] * self.grid[1]

    @property
    def width(self) -> int:
        """Channels of a token."""
        return int(self.model.embed_dim)

    def require_blocks(self, what: str) -> None:
        """Raises NotApplicableError if the tokens of this model must stay: `what` is the method that wants them."""
        if self.refusal is not None:
            raise NotApplicableError(
                f"{what} does not fit {self.name}: {self.refusal}.",
                hint="for such models: compile, or a smaller one (vis-accel list models)",
            )

    def require_class_token(self, what: str, use: str = "ranks patches by the attention of") -> None:
        """Raises NotApplicableError if there is no class token, which `what` puts to this `use`."""
        self.require_blocks(what)
        if getattr(self.model, "cls_token", None) is None:
            raise NotApplicableError(f"{what} {use} the class token, and this {self.name} has none.", hint="tome, which needs none")


def view(model: nn.Module) -> ViTView:
    """Describes `model`; what is not known is said in `refusal`, never guessed."""
    name = type(model).__name__
    reason = _refusal(model)
    if reason is not None:
        return ViTView(model, name, reason, classes=int(getattr(model, "num_classes", 0) or 0))
    known: Any = model
    pooling = "map" if known.attn_pool is not None else str(known.global_pool)
    readers = 2 if name == "VisionTransformerDistilled" else 1 if pooling == "token" else 0
    blocks = tuple(BlockView(index, block) for index, block in enumerate(known.blocks))
    grid = known.patch_embed.grid_size
    rotary = getattr(known, "rope", None) is not None
    size = (int(grid[0]), int(grid[1]))
    return ViTView(model, name, None, int(known.num_prefix_tokens), readers, int(known.num_classes), size, pooling, rotary, blocks)


def _refusal(model: Any) -> str | None:
    name = type(model).__name__
    if name in _GRIDS:
        return _GRIDS[name]
    if name not in _MODELS or not type(model).__module__.startswith("timm."):
        return f"the class {name} ({type(model).__module__}) is not among the models whose blocks are known ({', '.join(_MODELS)})"
    pooling = "map" if getattr(model, "attn_pool", None) is not None else str(getattr(model, "global_pool", ""))
    if pooling not in _POOLINGS:
        return f"its pooling {pooling!r} hands out every token" if not pooling else f"its pooling {pooling!r} is not known"
    pool = getattr(model, "attn_pool", None)
    if pool is not None and (type(pool).__name__ != "AttentionPoolLatent" or getattr(pool, "pos_embed", None) is not None):
        return f"its attention pool {type(pool).__name__} reads the grid"
    return next((reason for reason in map(_block_refusal, model.blocks) if reason), None)


def _block_refusal(block: Any) -> str | None:
    if type(block).__name__ not in _BLOCKS or not type(block).__module__.startswith("timm."):
        return f"the block {type(block).__name__} is not one of {', '.join(_BLOCKS)}"
    return attention.reason_against(block.attn)
