"""Small networks that say which patches matter: DynamicViT's predictor and SPViT's head-wise selector.

Predictor       Rao et al. 2021, arXiv:2106.02034: half of the features of a patch (local) beside the mean of the other half over the
                patches that are still there (global), then three linear layers to two log-probabilities.
HeadSelector    Kong et al. 2022, arXiv:2112.13890: the same for each head's part of a patch, by one network for all heads; the heads'
                answers are averaged with weights found from the means of their channels.

    log_probabilities = selector(x, kept)       B x P x 2, (stay, go), of x: B x P x C
    exp of the first is a patch's score

Widths   the predictor's are the paper's (C, C/2, C/4, 2); the selector's follow the same halving within a head.
Law      with patches of weight 0 in `kept` the others get what they would get if those did not exist.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vis_accel.errors import DataError

__all__ = ["SELECTORS", "HeadSelector", "Predictor", "selectors_from"]

_TINY = 1e-6  # least probability, and least sum of weights


def _global(x: Tensor, kept: Tensor | None) -> Tensor:
    """Mean of x (B x P x ... x C) over patches of weight `kept` (B x P), at every patch."""
    if kept is None:
        return x.mean(dim=1, keepdim=True).expand_as(x)
    weight = kept.to(x.dtype).reshape(*kept.shape, *[1] * (x.ndim - 2))
    mean = (x * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True).clamp_min(_TINY)
    return mean.expand_as(x)


class Predictor(nn.Module):
    """DynamicViT's predictor for patches of `width` channels."""

    def __init__(self, width: int, heads: int = 1) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        self.answer = nn.Sequential(
            nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU(), nn.Linear(width // 4, 2)
        )

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Log-probabilities (B x P x 2) of staying and of going."""
        local, beyond = self.features(x).chunk(2, dim=-1)
        out: Tensor = self.answer(torch.cat((local, _global(beyond, kept)), dim=-1)).float().log_softmax(dim=-1)
        return out


class HeadSelector(nn.Module):
    """SPViT's attention-based multi-head selector for patches of `width` channels."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        each = width // heads
        self.heads = heads
        self.features = nn.Sequential(nn.LayerNorm(each), nn.Linear(each, each // 2), nn.GELU())
        self.answer = nn.Sequential(nn.Linear(each // 2 * 2, each // 2), nn.GELU(), nn.Linear(each // 2, 2))
        self.weigh = nn.Sequential(nn.Linear(heads, heads), nn.GELU(), nn.Linear(heads, heads), nn.Sigmoid())

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Log-probabilities (B x P x 2) of staying and of going."""
        parts = x.unflatten(-1, (self.heads, -1))  # B x P x heads x C / heads
        local = self.features(parts)
        answers = self.answer(torch.cat((local, _global(local, kept)), dim=-1)).float().softmax(dim=-1)
        weights = self.weigh(parts.mean(dim=-1)).float()[..., None]
        mean: Tensor = (answers * weights).sum(dim=2) / weights.sum(dim=2).clamp_min(_TINY)
        return mean.clamp_min(_TINY).log()


SELECTORS: dict[str, type[Predictor] | type[HeadSelector]] = {"dynamicvit": Predictor, "package": HeadSelector}


def selectors_from(tensors: dict[str, Tensor], method: str, width: int, heads: int, count: int) -> list[nn.Module]:
    """The selectors of `method` for `count` stages, from the tensors `selectors.STAGE.NAME` of an add-on.

    Raises:
        DataError: tensors that are not those of such selectors.
    """
    with torch.random.fork_rng(devices=[]):  # their first values are of no use, and nobody's random numbers shall be drawn for them
        found: list[nn.Module] = [SELECTORS[method](width, heads) for _ in range(count)]
    own = {name.removeprefix("selectors."): tensor for name, tensor in tensors.items() if name.startswith("selectors.")}
    try:
        nn.ModuleList(found).load_state_dict({name: tensor.float() for name, tensor in own.items()})
    except RuntimeError as error:
        raise DataError(f"The add-on does not hold the selectors of {method} for {count} stages of width {width}: {error}") from error
    return [selector.eval().requires_grad_(False) for selector in found]
