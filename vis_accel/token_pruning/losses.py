"""Terms of the losses that token methods are trained with: pure functions of what a training forward hands out.

ratio_loss, distillation, token_distillation    Rao et al. 2021 (DynamicViT), arXiv:2106.02034
ponder_loss, depth_loss                         Yin et al. 2022 (A-ViT), arXiv:2112.07658
usage_loss                                      Meng et al. 2022 (AdaViT), arXiv:2111.15668

All are means over images, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["depth_loss", "distillation", "ponder_loss", "ratio_loss", "token_distillation", "usage_loss"]


def ratio_loss(kept: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Mean over stages and images of (share of patches kept - share wanted)^2.

    Args:
        kept: the bits of each stage, B x P; the sum of a row over `patches` of the start is its share, so P must be that number.
        shares: wanted, of the patches at the start.
    """
    terms = [(bits.float().mean(dim=1) - share).square().mean() for bits, share in zip(kept, shares, strict=True)]
    return torch.stack(terms).mean()


def distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the student's classes from the teacher's, both as logits B x classes."""
    target = teacher.float().log_softmax(dim=-1)
    return functional.kl_div(logits.float().log_softmax(dim=-1), target, reduction="batchmean", log_target=True)


def token_distillation(tokens: Tensor, teacher: Tensor, kept: Tensor) -> Tensor:
    """Mean squared difference of the student's and the teacher's last tokens (B x P x C), over the patches that stayed (`kept`, B x P)."""
    weight = kept.detach().float()
    error = (tokens.float() - teacher.float()).square().mean(dim=-1)
    return (error * weight).sum() / weight.sum().clamp_min(1.0)


def ponder_loss(ponder: Tensor) -> Tensor:
    """Mean over images and tokens of rho = blocks run + remainder (B x N)."""
    return ponder.float().mean()


def depth_loss(halting: Sequence[Tensor], target: float) -> Tensor:
    """Kullback-Leibler divergence of the distribution of halting over blocks from a Gaussian of width 1 around block `target`.

    Args:
        halting: the weight of each block in a token's output, B x N, in order: its score, or the remainder where the token halts.
        target: where tokens shall halt on average, 0-based.
    """
    mean = torch.stack([weight.float().mean() for weight in halting])
    found = (mean / mean.sum()).clamp_min(1e-8)
    blocks = torch.arange(len(halting), device=found.device, dtype=torch.float32)
    wanted = (-0.5 * (blocks - target).square()).log_softmax(dim=0)
    return (found * (found.log() - wanted)).sum()


def usage_loss(bits: Sequence[Tensor], target: float) -> Tensor:
    """(share of bits that are 1 - target)^2, over all blocks and images; the bits of a block are B x anything."""
    share = torch.cat([block.float().flatten() for block in bits]).mean()
    return (share - target).square()
