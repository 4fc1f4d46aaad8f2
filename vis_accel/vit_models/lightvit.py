"""LightViT: no convolutions behind the patch embedding; attention in windows, and global tokens that gather and spread between them.

Paper    Huang et al. 2022, "LightViT: Towards Light-Weight Convolution-Free Vision Transformers", arXiv:2207.05557.
Block    with X the image's tokens, G the global tokens, q k v linear, R the bias of relative positions in a window:
             near   = softmax(q(X) k(X)^T / sqrt(d) + R) v(X)    within windows of 7 x 7
             G'     = softmax(q(G) k(X)^T / sqrt(d)) v(X)        the global tokens gather from the whole image
             X', G' = near + softmax(q(X) k'(G')^T / sqrt(d)) v'(G'), G'      and spread it: k', v' a second linear layer
         then a residual with the FFN, whose output is scaled by two gates: one of its channels, from the mean token, and one of its
         tokens, from the token and the mean token (bi-dimensional attention).
Shapes   B images, C channels, H x W the grid of a stage, G global tokens before N = H W tokens of the image, h heads of d channels.
Sizes    any whose sides are multiples of 32: patches of 8 x 8, merged 2 x 2 twice.
Cost     10^6 parameters and 10^9 multiply-adds of one 224 x 224 image (torch.utils.flop_counter counts two a multiply-add: half of
         that), here; as the authors' README prints them; and multiply-adds without what their formula leaves out, which is k', v' and
         48 of the 49 products of a window:
             lightvit_tiny      9.38  0.772      9.4  0.7      0.734
             lightvit_small    19.20  1.825     19.2  1.7      1.742
             lightvit_base     35.20  4.107     35.2  3.9      3.922
Departs  what the paper leaves open follows its authors' release: the overlapping patch embedding of five convolutions (the only ones),
         8, 16 and 24 global tokens, a head that averages all tokens after one more layer. Where a grid is no multiple of 7 the windows
         are as few and as equal as cover it, each of 7 x 7 at most, and what sticks out is masked; at 224 pixels nothing does.
Not      LVT ("Lite Vision Transformer"). There are no trained weights here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models import checkpoint as recompute
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vis_accel.errors import UsageError, shown
from vis_accel.vit_models.lightvit_blocks import EPS, Block, Grid, PatchMerging

__all__ = ["LightViT"]  # a list: timm adds the names it registers

_STRIDE = 32


class PatchEmbedding(nn.Module):
    """Overlapping patches: images to one token for 8 x 8 pixels."""

    def __init__(self, chans: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        layers: list[nn.Module] = []
        for before, stride in ((chans, 2), (half, 1), (half, 1), (half, 2)):
            groups = half if layers else 1
            convolution = nn.Conv2d(before, half, 3, stride=stride, padding=1, groups=groups, bias=False)
            layers += [convolution, nn.BatchNorm2d(half), nn.GELU()]
        self.convs = nn.Sequential(*layers)
        self.proj = nn.Conv2d(half, dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """B x chans x 8 H x 8 W to B x N x C."""
        return self.norm(self.proj(self.convs(x)).flatten(2).transpose(1, 2))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks on one grid, after what halves it (nothing in the first stage)."""

    def __init__(self, before: int | None, dim: int, heads: int, tokens: int, expansion: float, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.downsample = None if before is None else PatchMerging(before, dim, tokens)
        self.blocks = nn.ModuleList(Block(dim, heads, tokens, expansion, drop_path) for drop_path in drop_paths)
        self.grad_checkpointing = False

    def forward(self, x: Tensor, grid: Grid) -> tuple[Tensor, Grid]:
        """B x (G + N') x C' on a grid to B x (G + N) x C on the stage's."""
        if self.downsample is not None:
            x, grid = self.downsample(x, grid), (grid[0] // 2, grid[1] // 2)
        for block in self.blocks:
            x = recompute(block, x, grid) if self.grad_checkpointing else block(x, grid)
        return x, grid


class LightViT(nn.Module):
    """The network, with what timm expects of one.

    Args:
        in_chans: channels of an image.
        num_classes: outputs of the head; 0: no head.
        global_pool: "avg", or "" for none.
        embed_dims, depths, num_heads, mlp_ratios: width, number of blocks, heads of attention and expansion of the FFN, by stage.
        num_tokens: global tokens, G.
        neck_dim: width of the layer before the head.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, rising from 0 in the first.

    Raises:
        UsageError: an unknown pooling, no global tokens, stages that disagree in number, or heads that do not divide their width.
    """

    global_pool: str

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (64, 128, 256),
        depths: Sequence[int] = (2, 6, 6),
        num_heads: Sequence[int] = (2, 4, 8),
        mlp_ratios: Sequence[float] = (8, 4, 4),
        num_tokens: int = 8,
        neck_dim: int = 1280,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check((embed_dims, depths, num_heads, mlp_ratios), num_tokens)
        self.in_chans = in_chans
        self.num_prefix_tokens = num_tokens
        self.num_features = self.embed_dim = int(embed_dims[-1])
        self.head_hidden_size = neck_dim
        self.patch_embed = PatchEmbedding(in_chans, embed_dims[0])
        self.global_tokens = nn.Parameter(torch.zeros(1, num_tokens, embed_dims[0]))
        rates = torch.linspace(0, drop_path_rate, sum(depths)).split(list(depths))
        self.stages = nn.ModuleList()
        before = None  # the first stage has the width and the grid of the patches already
        for dim, heads, expansion, part in zip(embed_dims, num_heads, mlp_ratios, rates, strict=True):
            self.stages.append(Stage(before, dim, heads, num_tokens, expansion, part.tolist()))
            before = dim
        self.feature_info = [{"num_chs": d, "reduction": 8 * 2**i, "module": f"stages.{i}"} for i, d in enumerate(embed_dims)]
        self.norm = nn.LayerNorm(self.num_features, eps=EPS)
        self.neck = nn.Sequential(nn.Linear(self.num_features, neck_dim), nn.LayerNorm(neck_dim), nn.GELU())
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        trunc_normal_(self.global_tokens, std=0.02)
        self.apply(_initialise)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are positions or tokens rather than weights."""
        return {name for name, _ in self.named_parameters() if name.endswith(("global_tokens", "relative_position_bias_table"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """What timm's layer decay takes for a layer: a block, or with `coarse` a stage."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed|^global_tokens", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes blocks in the backward pass instead of keeping what they made."""
        for part in self.modules():
            if isinstance(part, Stage):
                part.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes`, and another pooling if given."""
        if global_pool not in (None, "avg", ""):
            raise UsageError(f"LightViT averages its tokens, global_pool='avg', or hands them all out, ''; got {shown(global_pool)}.")
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.num_classes = num_classes
        like = self.global_tokens
        width = self.head_hidden_size
        self.head = nn.Linear(width, num_classes, device=like.device, dtype=like.dtype) if num_classes else nn.Identity()
        self.head.apply(_initialise)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps (B x C x H x W) that the stages `indices` end with, after what `forward_features` gives unless `intermediates_only`."""
        if output_fmt != "NCHW":
            raise UsageError(f"LightViT hands out its maps as NCHW; got output_fmt={shown(output_fmt)}.")
        wanted, last = feature_take_indices(len(self.stages), indices)
        found = []
        x, grid = self._tokens(x)
        for place, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x, grid = stage(x, grid)
            ended = place == len(self.stages) - 1
            if place in wanted:
                y = self.norm(x) if norm and ended else x
                found.append(y[:, self.num_prefix_tokens :].transpose(1, 2).unflatten(2, grid))
        if intermediates_only:
            return found
        return (self.norm(x) if ended else x), found

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B x in_chans x height x width) to tokens, normalised (B x (G + N) x C, N = height / 32 x width / 32)."""
        x, grid = self._tokens(x)
        for stage in self.stages:
            x, grid = stage(x, grid)
        return self.norm(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens to logits, or with `pre_logits` to what the classifier reads."""
        x = self.neck(x)
        x = self.head_drop(x.mean(dim=1) if self.global_pool else x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B x in_chans x height x width), normalised, to logits (B x num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _tokens(self, x: Tensor) -> tuple[Tensor, Grid]:
        height, width = x.shape[-2:]
        if height % _STRIDE or width % _STRIDE:
            near = [max(_STRIDE, round(side / _STRIDE) * _STRIDE) for side in (height, width)]
            message = f"LightViT takes images whose sides are multiples of {_STRIDE}; got {height} x {width}."
            raise UsageError(message, hint=f"resize them, to {near[0]} x {near[1]} for example")
        patches = self.patch_embed(x)
        return torch.cat((self.global_tokens.expand(patches.shape[0], -1, -1), patches), dim=1), (height // 8, width // 8)


def _check(stages: Sequence[Sequence[float]], tokens: int) -> None:
    if len({len(numbers) for numbers in stages}) != 1 or not stages[0]:
        raise UsageError(f"embed_dims, depths, num_heads and mlp_ratios give one number a stage; got {shown(tuple(stages))}.")
    if wrong := next((stage for stage in zip(*stages, strict=True) if min(stage) <= 0 or stage[0] % stage[2]), None):
        raise UsageError(f"A stage needs a width that its heads divide and a depth >= 1; got width, depth, heads, expansion {wrong}.")
    if tokens < 1:
        raise UsageError(f"num_tokens is the number of global tokens and must be >= 1; got {tokens}.")


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_CFG = {
    "input_size": (3, 224, 224), "pool_size": (7, 7), "num_classes": 1000, "crop_pct": 0.9, "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "first_conv": "patch_embed.convs.0", "classifier": "head",
}  # fmt: skip
default_cfgs = generate_default_cfgs({name: dict(_CFG) for name in ("lightvit_tiny", "lightvit_small", "lightvit_base")})


def _create(name: str, pretrained: bool, **arguments: Any) -> Any:
    return build_model_with_cfg(LightViT, name, pretrained, feature_cfg={"out_indices": (0, 1, 2), "feature_cls": "getter"}, **arguments)


@register_model  # type: ignore[untyped-decorator]
def lightvit_tiny(pretrained: bool = False, **kwargs: Any) -> Any:
    """LightViT-T: 9.4 M parameters."""
    return _create("lightvit_tiny", pretrained, **kwargs)


@register_model  # type: ignore[untyped-decorator]
def lightvit_small(pretrained: bool = False, **kwargs: Any) -> Any:
    """LightViT-S: 19.2 M parameters."""
    sizes = {"embed_dims": (96, 192, 384), "num_heads": (3, 6, 12), "num_tokens": 16}
    return _create("lightvit_small", pretrained, **sizes | kwargs)


@register_model  # type: ignore[untyped-decorator]
def lightvit_base(pretrained: bool = False, **kwargs: Any) -> Any:
    """LightViT-B: 35.2 M parameters."""
    sizes = {"embed_dims": (128, 256, 512), "depths": (3, 8, 6), "num_heads": (4, 8, 16), "num_tokens": 24}
    return _create("lightvit_base", pretrained, **sizes | kwargs)
