"""ATS: as many patches as the image needs, sampled from what the class token looks at.

Paper    Fayyaz et al. 2022, "Adaptive Token Sampling for Efficient Vision Transformers", arXiv:2111.15667. Score of patch j: the class
         token's attention times the norm of the value, a_j |v_j|, summed over heads, over the sum of all. Sampling: inverse transform
         of the cumulative scores at the fixed points (2k - 1) / 2K, k = 1 .. K. A patch that is hit several times stays once, so
         the number of patches depends on the image: few where attention is gathered, many where it is spread.
Step     within attention: only the sampled queries are computed, so attention, projection and MLP of the same block are smaller already.
Cost     one row of attention, a sort, a search. A batch is as long as its longest image; the others are padded and masked.
Departs  scores are summed in rising order, as the authors' code does (the paper leaves the order open); the points are the paper's (the
         code spaces them from the smallest score on). A distillation token's row counts as the class token's; registers always stay.
Not      a fixed count: no static shapes, no export; time falls with the images' own counts at batch 1, with the longest in a batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from vis_accel.handle import Handle
from vis_accel.method import Context, option
from vis_accel.token_pruning import schedule
from vis_accel.token_pruning.base import TokenMethod, vit_view
from vis_accel.token_pruning.compact import alive_first, sizes
from vis_accel.token_pruning.tally import Tally
from vis_accel.token_pruning.tome import placed
from vis_accel.vit_models.attention import log_size_mask
from vis_accel.vit_models.stream import Tokens, run_blocks, take
from vis_accel.vit_models.view import BlockView, Projected, ViTView

__all__ = ["Ats", "sampled", "significance"]


def significance(q: Tensor, k: Tensor, v: Tensor, *, rows: int, scale: float, bias: Tensor | None = None) -> Tensor:
    """Sum over heads of a_j |v_j|, a the mean attention of the first `rows` tokens: B x N, float32, not normalised."""
    scores = (q[:, :, :rows] * scale) @ k.transpose(-2, -1)
    if bias is not None:
        scores = scores + bias
    attention = scores.softmax(dim=-1, dtype=torch.float32).mean(dim=2)
    found: Tensor = (attention * v.float().norm(dim=-1)).sum(dim=1)
    return found


def sampled(scores: Tensor, count: int, there: Tensor | None = None) -> Tensor:
    """Which patches are hit by `count` evenly spaced points of the cumulative scores: B x n, bool, at least one and at most `count` each.

    Args:
        scores: B x n, not negative; a score of 0 is never hit.
        count: number of points, K.
        there: B x n, False where a column is padding, whose score must be 0.

    Where scores are not finite or all 0, nothing can be said of the image, and all its patches stay.
    """
    total = scores.sum(dim=1, keepdim=True)
    known = total.isfinite() & (total > 0)
    shares = torch.where(known, scores / total, 1.0)
    ordered, order = shares.sort(dim=1, stable=True)
    points = (torch.arange(count, device=scores.device, dtype=scores.dtype) + 0.5) / count
    place = torch.searchsorted(ordered.cumsum(dim=1), points.expand(len(scores), -1).contiguous()).clamp_max(scores.shape[1] - 1)
    hit = torch.zeros_like(scores, dtype=torch.bool).scatter(1, order.gather(1, place), True) | ~known
    return hit if there is None else hit & there


@dataclass(frozen=True, kw_only=True)
class Ats(TokenMethod):
    """Samples patches by the class token's attention; how many stay, depends on the image."""

    name: ClassVar[str] = "ats"
    needs: ClassVar[frozenset[str]] = frozenset({"all tokens", "class token"})
    breaks: ClassVar[frozenset[str]] = frozenset({"grid", "static forward"})

    tokens: int | None = option(None, "the most patches an image keeps at a stage; None: as many as the grid has", low=1)
    stages: tuple[int, ...] | None = option(
        None, "the blocks (0-based) that sample, within attention; None: all after the first quarter", low=0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stages is not None and (not self.stages or list(self.stages) != sorted(set(self.stages))):
            raise self.refused("stages", "must name at least one block, each once, in order")

    def check_target(self, view: Any) -> None:
        vit_view(self, view).require_class_token(self.name)
        self.blocks(view)

    def blocks(self, view: ViTView) -> tuple[int, ...]:
        """The stages on this model."""
        depth = len(view.blocks)
        if self.stages is None:
            return tuple(range(depth // 4, depth))
        schedule.stages_fit(self.stages, depth, self.name)
        return self.stages

    def points(self, view: ViTView) -> int:
        """Number of points at which a stage samples."""
        return view.patches if self.tokens is None else self.tokens

    def describe(self, view: ViTView) -> list[str]:
        most = min(self.points(view), view.patches)
        names = ", ".join(map(str, self.blocks(view)))
        return [f"at most {most} of {view.patches} patches after each of the blocks {names}; how many, depends on the image"]

    def apply(self, target: Any, context: Context) -> Handle:
        """Wraps the blocks from the first stage on."""
        view: ViTView = context.view
        tally = Tally()
        step = partial(self._step, view.prefix, max(1, view.readers), self.points(view), tally)
        with Handle.building(target, str(self)) as handle:
            run_blocks(handle, view, dict.fromkeys(self.blocks(view), step), sizes=True)
            handle.reports(tally.take)
        return handle

    def _step(self, prefix: int, rows: int, points: int, tally: Tally, block: BlockView, tokens: Tokens, rope: Tensor | None) -> Tokens:
        bias = None if tokens.size is None else log_size_mask(tokens.size, tokens.x.dtype)
        found = block.project(tokens.x, rope)
        there = None if tokens.size is None else tokens.size[:, prefix:] > 0
        with torch.no_grad():
            scores = significance(found.q, found.k, found.v, rows=rows, scale=block.scale, bias=bias)[:, prefix:]
            index, there = alive_first(sampled(scores, points, there))
            tally.add(f"patches after block {block.index}", int(there.sum()), len(there))
        tokens = placed(tokens, prefix, rope)
        whole = index.shape[1] == tokens.x.shape[1] - prefix  # then every index is its own, or the padding stays where it was
        if whole and bool(there.all()):
            tokens = tokens._replace(x=block.join(found, block.attend(found.q, found.k, found.v, bias=bias)), size=None)
        else:
            tokens = _sample(block, tokens, found, bias, index, there, prefix)
        return tokens._replace(x=block.feed(tokens.x))


def _sample(block: BlockView, tokens: Tokens, found: Projected, bias: Tensor | None, index: Tensor, there: Tensor, prefix: int) -> Tokens:
    """Attention for the sampled tokens alone, and what goes with them."""
    first = torch.arange(prefix, device=index.device).expand(len(index), -1)
    rows = torch.cat((first, index + prefix), dim=1)
    queries = found.q.gather(2, rows[:, None, :, None].expand(-1, found.q.shape[1], -1, found.q.shape[3]))
    x = block.join(found, block.attend(queries, found.k, found.v, bias=bias), rows)
    place = None if tokens.place is None else take(tokens.place, index)
    size, source = sizes(there, prefix), tokens.source
    if source is not None:
        source = take(source, rows) * (1 if size is None else size[..., None])
    return Tokens(x, size, place, source)
