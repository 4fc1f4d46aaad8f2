"""How many tokens go in which block: the forms a user may write, turned into one number for each block.

Bolya et al. 2023 (arXiv:2210.09461, section 3.1) merge r tokens in every block; a rising schedule goes from 0 to 2r and a falling one
from 2r to 0, at the same total. At most half of the patches can be merged at once, so later blocks are clamped; the first is not: a
number no block can reach is a mistake. Kept patches of Liang et al. 2022 (arXiv:2202.07800): ceil(keep x patches) at each stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vis_accel.errors import UsageError

__all__ = ["SHAPES", "kept", "merged", "stages_fit"]

SHAPES = ("constant", "rising", "falling")


def merged(r: int | Sequence[int], shape: str, *, depth: int, patches: int, prefix: int, name: str) -> tuple[int, ...]:
    """Number of tokens merged away in each block, clamped to what is there.

    Args:
        r: for all blocks, or one number a block (blocks that are not named merge nothing).
        shape: of a schedule that is given by one number.
        depth: number of blocks.
        patches, prefix: tokens at the start.
        name: of the method, for messages.

    Raises:
        UsageError: more numbers than blocks, or a first number above half of the patches.
    """
    if isinstance(r, int):
        wanted = [r] * depth if shape == "constant" else _ramp(r, shape, depth)
    else:
        wanted = [*r, *[0] * (depth - len(r))]
        if len(r) > depth:
            raise UsageError(f"{name}: r names {len(r)} blocks, and the model has {depth}.", hint=f"at most {depth} numbers")
    limit = patches // 2
    first = next((number for number in wanted if number > 0), 0)
    if first > limit:
        raise UsageError(
            f"{name}: r = {first} is above the limit of {limit}: at most half of the {patches} patches can be merged in one block.",
            hint=f"r <= {limit}",
        )
    found = []
    for number in wanted:
        found.append(min(number, patches // 2))
        patches -= found[-1]
    return tuple(found)


def kept(patches: int, keep: float) -> int:
    """ceil(keep x patches), at least one; rounding errors of the product do not count."""
    return max(1, math.ceil(round(keep * patches, 6)))


def stages_fit(stages: Sequence[int], depth: int, name: str) -> None:
    """Raises UsageError unless every stage is a block of the model."""
    outside = [stage for stage in stages if stage >= depth]
    if outside:
        raise UsageError(
            f"{name}: stages = {tuple(stages)} names block {outside[0]}, and the model has blocks 0 to {depth - 1}.",
            hint=f"stages={tuple(sorted({depth // 4, depth // 2, 3 * depth // 4}))}",
        )


def _ramp(r: int, shape: str, depth: int) -> list[int]:
    rising = [int(2 * r * block / max(1, depth - 1)) for block in range(depth)]
    return rising if shape == "rising" else rising[::-1]
