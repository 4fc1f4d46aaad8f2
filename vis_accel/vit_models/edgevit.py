"""EdgeViT: convolutions gather, attention between every s-th token, transposed convolutions spread the result.

Paper    Pan et al. 2022, "EdgeViTs: Competing Light-weight CNNs on Mobile Devices with Vision Transformers", arXiv:2205.03436, ECCV.
Block    local - global - local, each line a residual, P a depthwise 3 x 3 convolution of positions (CPVT, arXiv:2102.10882):
             x = x + P1(x);  x = x + LocalAgg(Norm(x));  x = x + FFN(Norm(x))
             x = x + P2(x);  x = x + LocalProp(GlobalSparseAttn(Norm(x)));  x = x + FFN(Norm(x))
         LocalAgg is a 1 x 1, a depthwise 5 x 5 and a 1 x 1 convolution; GlobalSparseAttn is attention among one delegate of each s x s
         window; LocalProp is a depthwise transposed convolution of kernel and stride s.
Shapes   B images, C channels, H x W the grid of a stage, n = H W / s^2 delegates, h heads of d channels.
Sizes    any whose sides are multiples of 32: strides 4, 2, 2, 2, and windows of s = 4, 2, 2, 1 tile what they leave.
Cost     scores of attention fall by s^4. 10^6 parameters and 10^9 multiply-adds of one 224 x 224 image (torch.utils.flop_counter
         counts two a multiply-add: half of that), here; in the paper, recalled; as Ma et al. counted again ("Efficient Modulation for
         Vision Networks", ICLR 2024):
             edgevit_xxs    4.07  0.551      4.1  0.6
             edgevit_xs     6.77  1.128      6.7  1.1       6.8  1.1
             edgevit_s     13.11  1.911     11.1  1.9      13.1  1.9
         edgevit_s has the depths its authors released; the paper's 11.1, which they do not give, is taken for a misprint.
Departs  what the paper leaves open follows its authors' release: depths; batch norms before convolutions, layer norms before attention;
         no local aggregation in the last stage, where s = 1; the delegate is the first token of its window.
Not      EdgeNeXt (arXiv:2206.10589), whose attention is over channels. There are no trained weights here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import lcm
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath, LayerNorm2d, Mlp, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models import checkpoint as recompute
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn import functional as F

from vis_accel.errors import UsageError, shown

__all__ = ["EdgeViT"]  # a list: timm adds the names it registers

_EPS = 1e-6


class LocalAggregation(nn.Module):
    """Each token sees its neighbourhood, then a feed-forward layer: the first half of a block, convolutions only."""

    def __init__(self, dim: int, expansion: float, drop_path: float) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.gather = nn.Sequential(nn.Conv2d(dim, dim, 1), nn.Conv2d(dim, dim, 5, padding=2, groups=dim), nn.Conv2d(dim, dim, 1))
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, int(dim * expansion), use_conv=True)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """B x C x H x W to the same."""
        x = x + self.position(x)
        x = x + self.drop_path(self.gather(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class SparseAttention(nn.Module):
    """Attention among the delegates, and its result spread over their windows."""

    def __init__(self, dim: int, heads: int, stride: int) -> None:
        super().__init__()
        self.heads = heads
        self.stride = stride
        self.qkv = nn.Linear(dim, 3 * dim)
        self.spread = nn.ConvTranspose2d(dim, dim, stride, stride=stride, groups=dim) if stride > 1 else None
        self.norm = nn.LayerNorm(dim, eps=_EPS) if stride > 1 else None
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """B x H x W x C to the same."""
        x = x[:, :: self.stride, :: self.stride]
        grid = x.shape[1:3]
        q, k, v = self.qkv(x.flatten(1, 2)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each B x h x n x d
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).unflatten(1, grid)
        if self.spread is not None and self.norm is not None:
            x = self.norm(self.spread(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        return self.proj(x)  # type: ignore[no-any-return]


class GlobalExchange(nn.Module):
    """Every token sees the whole image by way of the delegates, then a feed-forward layer: the second half of a block."""

    def __init__(self, dim: int, heads: int, stride: int, expansion: float, drop_path: float) -> None:
        super().__init__()
        self.position = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.LayerNorm(dim, eps=_EPS)
        self.attn = SparseAttention(dim, heads, stride)
        self.norm2 = nn.LayerNorm(dim, eps=_EPS)
        self.mlp = Mlp(dim, int(dim * expansion))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """B x C x H x W to the same."""
        x = (x + self.position(x)).permute(0, 2, 3, 1)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        return x.permute(0, 3, 1, 2)


class Patches(nn.Module):
    """Patches of stride x stride, each made one token and normalised."""

    def __init__(self, chans: int, dim: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(chans, dim, stride, stride=stride)
        self.norm = LayerNorm2d(dim, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """B x chans x (H stride) x (W stride) to B x dim x H x W."""
        return self.norm(self.proj(x))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """Blocks on one grid, after what halves it (nothing in the first stage)."""

    def __init__(self, before: int | None, dim: int, heads: int, stride: int, expansion: float, drop_paths: Sequence[float]) -> None:
        super().__init__()
        self.downsample = nn.Identity() if before is None else Patches(before, dim, 2)
        blocks = []
        for drop_path in drop_paths:
            local = [LocalAggregation(dim, expansion, drop_path)] if stride > 1 else []
            blocks.append(nn.Sequential(*local, GlobalExchange(dim, heads, stride, expansion, drop_path)))
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """B x C' x H' x W' to B x C x H x W."""
        x = self.downsample(x)
        for block in self.blocks:
            x = recompute(block, x) if self.grad_checkpointing else block(x)
        return x


class EdgeViT(nn.Module):
    """The network, with what timm expects of one.

    Args:
        in_chans: channels of an image.
        num_classes: outputs of the head; 0: no head.
        global_pool: a pooling of timm's, or "" for none.
        embed_dims, depths, num_heads, strides: width, number of blocks, heads of attention and side s of a delegate's window, by stage.
        mlp_ratio: hidden channels of a feed-forward layer, in channels.
        drop_rate: dropout before the head.
        drop_path_rate: stochastic depth of the last block, rising from 0 in the first.

    Raises:
        UsageError: stages that disagree in number, or heads that do not divide their width.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        embed_dims: Sequence[int] = (48, 96, 240, 384),
        depths: Sequence[int] = (1, 2, 5, 3),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        strides: Sequence[int] = (4, 2, 2, 1),
        mlp_ratio: float = 4.0,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check((embed_dims, depths, num_heads, strides))
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.global_pool = global_pool
        self.drop_rate = drop_rate
        self.num_features = int(embed_dims[-1])
        self.divisor = lcm(*(4 * 2**stage * stride for stage, stride in enumerate(strides)))
        self.patch_embed = Patches(in_chans, embed_dims[0], 4)
        rates = torch.linspace(0, drop_path_rate, sum(depths)).split(list(depths))
        self.stages = nn.Sequential()
        before = None  # the first stage has the width and the grid of the patches already
        for dim, heads, stride, part in zip(embed_dims, num_heads, strides, rates, strict=True):
            self.stages.append(Stage(before, dim, heads, stride, mlp_ratio, part.tolist()))
            before = dim
        self.feature_info = [{"num_chs": d, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, d in enumerate(embed_dims)]
        self.norm = nn.BatchNorm2d(self.num_features)
        self.head = ClassifierHead(self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.head_hidden_size = self.head.num_features
        self.apply(_initialise)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """What timm's layer decay takes for a layer: a block, or with `coarse` a stage."""
        fine = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed", "blocks": r"^stages\.(\d+)" if coarse else fine}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes blocks in the backward pass instead of keeping what they made."""
        for part in self.modules():
            if isinstance(part, Stage):
                part.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The layer that makes logits."""
        return self.head.fc  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh head for `num_classes`, and another pooling if given; "" pools nothing and has no classifier."""
        if num_classes and (self.global_pool if global_pool is None else global_pool) == "":
            message = f"EdgeViT classifies what it pooled; got num_classes={num_classes} with global_pool=''."
            raise UsageError(message, hint="global_pool='avg'")
        self.num_classes = num_classes
        self.global_pool = self.global_pool if global_pool is None else global_pool
        self.head.reset(num_classes, global_pool)
        self.head_hidden_size = self.head.num_features

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
            raise UsageError(f"EdgeViT hands out its maps as NCHW; got output_fmt={shown(output_fmt)}.")
        wanted, last = feature_take_indices(len(self.stages), indices)
        found = []
        x = self._patches(x)
        for place, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if place in wanted:
                found.append(self.norm(x) if norm and place == len(self.stages) - 1 else x)
        if intermediates_only:
            return found
        return (self.norm(x) if place == len(self.stages) - 1 else x), found

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B x in_chans x height x width) to the last map, normalised (B x C x height / 32 x width / 32)."""
        return self.norm(self.stages(self._patches(x)))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last map to logits, or with `pre_logits` to what the classifier reads."""
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        """Images (B x in_chans x height x width), normalised, to logits (B x num_classes)."""
        return self.forward_head(self.forward_features(x))

    def _patches(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % self.divisor or width % self.divisor:
            near = [max(self.divisor, round(side / self.divisor) * self.divisor) for side in (height, width)]
            message = f"EdgeViT takes images whose sides are multiples of {self.divisor}; got {height} x {width}."
            raise UsageError(message, hint=f"resize them, to {near[0]} x {near[1]} for example")
        return self.patch_embed(x)  # type: ignore[no-any-return]


def _check(stages: Sequence[Sequence[int]]) -> None:
    if len({len(numbers) for numbers in stages}) != 1 or not stages[0]:
        raise UsageError(f"embed_dims, depths, num_heads and strides give one number a stage; got {shown(tuple(stages))}.")
    if wrong := next((stage for stage in zip(*stages, strict=True) if min(stage) < 1 or stage[0] % stage[2]), None):
        raise UsageError(
            f"A stage needs a width that its heads divide, a depth and a stride >= 1; got width, depth, heads, stride {wrong}."
        )


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


_CFG = {
    "input_size": (3, 224, 224), "pool_size": (7, 7), "num_classes": 1000, "crop_pct": 0.9, "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD, "first_conv": "patch_embed.proj", "classifier": "head.fc",
}  # fmt: skip
default_cfgs = generate_default_cfgs({name: dict(_CFG) for name in ("edgevit_xxs", "edgevit_xs", "edgevit_s")})


def _create(name: str, pretrained: bool, **arguments: Any) -> Any:
    return build_model_with_cfg(EdgeViT, name, pretrained, feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}, **arguments)


@register_model  # type: ignore[untyped-decorator]
def edgevit_xxs(pretrained: bool = False, **kwargs: Any) -> Any:
    """EdgeViT-XXS: 4.1 M parameters."""
    sizes = {"embed_dims": (36, 72, 144, 288), "depths": (1, 1, 3, 2), "num_heads": (1, 2, 4, 8)}
    return _create("edgevit_xxs", pretrained, **sizes | kwargs)


@register_model  # type: ignore[untyped-decorator]
def edgevit_xs(pretrained: bool = False, **kwargs: Any) -> Any:
    """EdgeViT-XS: 6.8 M parameters."""
    return _create("edgevit_xs", pretrained, **{"depths": (1, 1, 3, 1)} | kwargs)


@register_model  # type: ignore[untyped-decorator]
def edgevit_s(pretrained: bool = False, **kwargs: Any) -> Any:
    """EdgeViT-S: 13.1 M parameters."""
    return _create("edgevit_s", pretrained, **kwargs)
