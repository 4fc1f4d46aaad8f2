"""The edge vision transformers there are: what each family is, by whom, what it needs, and what can be done to it.

One literal table, light to import. "Needs" are properties of timm's implementations, and a test builds the example of each family and
holds the table to it. Two families are called EfficientViT: MIT's (b, l) and Microsoft Research Asia's (m).

All of them keep their tokens on a grid, for convolutions, windows or bias tables, so methods that drop or merge tokens refuse them. What
makes them faster is a smaller sibling, folding (`vis-accel export` folds), compilation and precision.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from typing import Literal

__all__ = ["FAMILIES", "EdgeFamily", "family_of", "register"]

Norms = Literal["all", "some", "none", "stay", "absent"]
NORMS: dict[Norms, str] = {
    "all": "timm's re-parameterisation folds all its batch norms",
    "some": "timm's re-parameterisation folds most of its batch norms, vis-accel's most of the rest",
    "none": "timm's re-parameterisation leaves its batch norms, vis-accel folds those behind convolutions",
    "stay": "its batch norms stand before convolutions, and stay",
    "absent": "it has no batch norms to fold",
}
SIZES = {
    "any": "images of any size",
    "fixed": "its size is fixed when it is built: timm.create_model(name, img_size=...)",
    "one": "images of 224 x 224 pixels and no other size: timm takes img_size and ignores it",
    "multiples": "images whose sides are multiples of 32",
    "resampled": "images are resampled to the size it was built for",
}


@dataclass(frozen=True, kw_only=True)
class EdgeFamily:
    """One family.

    Attributes:
        summary: what it is, in one line.
        paper: author, year and arXiv id.
        names: pattern of its timm names.
        example: a small member.
        size: a key of `SIZES`.
        norms: what timm's re-parameterisation does to its batch norms; a key of `NORMS`.
        why_grid: why its tokens must stay, to follow "token methods do not fit: ".
        instead: what to use in place of token methods.
        takes: the families of methods that fit, of `method.FAMILIES`.
        module: what registers it with timm; None: timm itself.
    """

    summary: str
    paper: str
    names: str
    example: str
    size: Literal["any", "fixed", "one", "multiples", "resampled"]
    norms: Norms
    why_grid: str
    instead: str
    takes: tuple[str, ...] = ("precision", "compile")
    module: str | None = None

    def needs(self) -> str:
        """What it needs when it is built and what folding does, in words."""
        return f"{SIZES[self.size]}; {NORMS[self.norms]}"


# fmt: off
FAMILIES: dict[str, EdgeFamily] = {
    "crossvit": EdgeFamily(
        summary="two branches with patches of two sizes, whose class tokens attend to the other branch",
        paper="Chen et al. 2021, arXiv:2103.14899", names="crossvit_*", example="crossvit_9_dagger_240", size="resampled", norms="absent",
        why_grid="its branches have grids of their own and exchange class tokens",
        instead="a plain vision transformer such as deit_small, with tome",
    ),
    "edgenext": EdgeFamily(
        summary="depthwise convolutions, with attention over channels at the end of each stage",
        paper="Maaz et al. 2022, arXiv:2206.10589", names="edgenext_*", example="edgenext_xx_small", size="any", norms="absent",
        why_grid="convolutions; its attention is over channels, so tokens cost it little", instead="a smaller member; compile",
    ),
    "edgevit": EdgeFamily(
        summary="convolutions gather, attention between every s-th token, transposed convolutions spread",
        paper="Pan et al. 2022, arXiv:2205.03436", names="edgevit_*", example="edgevit_xxs", size="multiples", norms="stay",
        why_grid="it samples the grid already and spreads the result by convolutions", instead="a smaller member; compile",
        module="vis_accel.vit_models.edgevit",
    ),
    "efficientformer": EdgeFamily(
        summary="pooling on the grid in the early stages, attention with a bias table in the last blocks",
        paper="Li et al. 2022, arXiv:2206.01191", names="efficientformer_*", example="efficientformer_l1", size="one", norms="none",
        why_grid="pooling, and a bias table over the grid", instead="a smaller member; compile",
    ),
    "efficientformerv2": EdgeFamily(
        summary="depthwise convolutions and attention with talking heads on a subsampled grid",
        paper="Li et al. 2022, arXiv:2212.08059", names="efficientformerv2_*", example="efficientformerv2_s0", size="fixed", norms="none",
        why_grid="convolutions, and a bias table over the grid", instead="compile: its attention is slow on a GPU otherwise",
    ),
    "efficientvit-mit": EdgeFamily(
        summary="multi-scale linear attention (ReLU in place of softmax) between inverted bottlenecks",
        paper="Cai et al. 2022, arXiv:2205.14756", names="efficientvit_[bl]*", example="efficientvit_b0", size="any", norms="none",
        why_grid="convolutions; its attention is linear in tokens already", instead="compile; its attention stays in float32 by itself",
    ),
    "efficientvit-msra": EdgeFamily(
        summary="one cascade of attention heads, each on its own channels, between feed-forward layers",
        paper="Liu et al. 2023, arXiv:2305.07027", names="efficientvit_m*", example="efficientvit_m0", size="any", norms="all",
        why_grid="convolutions, and a bias table over the grid", instead="a smaller member; compile",
    ),
    "fastvit": EdgeFamily(
        summary="token mixing by depthwise convolutions that fold into one; attention in the last stage of the sa members",
        paper="Vasu et al. 2023, arXiv:2303.14189", names="fastvit_*", example="fastvit_t8", size="any", norms="some",
        why_grid="its token mixers are convolutions", instead="fold it, train it unfolded; compile",
    ),
    "levit": EdgeFamily(
        summary="a convolutional stem, then attention with a bias table on a grid that two stages subsample",
        paper="Graham et al. 2021, arXiv:2104.01136", names="levit_*", example="levit_128s", size="fixed", norms="all",
        why_grid="a bias table over the grid, and stages that subsample it", instead="a smaller member; levit_conv_* compiled on a GPU",
    ),
    "lightvit": EdgeFamily(
        summary="no convolutions behind the patches: attention in windows, and global tokens that gather and spread between them",
        paper="Huang et al. 2022, arXiv:2207.05557", names="lightvit_*", example="lightvit_tiny", size="multiples", norms="none",
        why_grid="it attends within windows of the grid", instead="a smaller member; compile",
        module="vis_accel.vit_models.lightvit",
    ),
    "mobilevit": EdgeFamily(
        summary="inverted bottlenecks, with attention between the pixels at one place of all 2 x 2 patches",
        paper="Mehta and Rastegari 2021, arXiv:2110.02178", names="mobilevit_*", example="mobilevit_xxs", size="any", norms="none",
        why_grid="convolutions, and it unfolds the grid into patches", instead="levit or fastvit, unless it runs on a phone's accelerator",
    ),
    "mobilevitv2": EdgeFamily(
        summary="MobileViT with separable attention, linear in tokens",
        paper="Mehta and Rastegari 2022, arXiv:2206.02680", names="mobilevitv2_*", example="mobilevitv2_050", size="any", norms="none",
        why_grid="convolutions, and it unfolds the grid into patches", instead="levit or fastvit, unless it runs on a phone's accelerator",
    ),
    "repvit": EdgeFamily(
        summary="a convolutional network laid out like a vision transformer; branches fold into one convolution",
        paper="Wang et al. 2023, arXiv:2307.09283", names="repvit_*", example="repvit_m0_9", size="any", norms="all",
        why_grid="it is made of convolutions", instead="fold it; compile",
    ),
    "tinyvit": EdgeFamily(
        summary="inverted bottlenecks, then attention within windows; distilled from large models",
        paper="Wu et al. 2022, arXiv:2207.10666", names="tiny_vit_*", example="tiny_vit_5m_224", size="any", norms="all",
        why_grid="convolutions, and attention within windows of the grid", instead="a smaller member; compile",
    ),
}
# fmt: on


def family_of(name: str) -> str | None:
    """The family of the timm model `name` ("levit_128s", "timm/levit_128s.fb_dist_in1k"); None: none of these."""
    plain = name.removeprefix("timm/").partition(".")[0]
    return next((key for key, family in FAMILIES.items() if fnmatchcase(plain, family.names)), None)


def register(name: str) -> None:
    """Makes timm know the model `name`, if it is of a family that this package adds to timm."""
    family = FAMILIES.get(family_of(name) or "")
    if family is not None and family.module is not None:
        import_module(family.module)
