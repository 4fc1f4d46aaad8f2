"""Calls of a network that carry two halves, a conditional and an unconditional one: taking one half out, and putting an answer together.

Shapes   a stacked call has 2B rows, the halves B each. Of its arguments every tensor whose first dimension is 2B is batched, whether it is
         an argument itself or lies in a list, a tuple or a mapping; all others are the same for every row, and left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vis_accel.errors import NotApplicableError

__all__ = ["answer_of", "joined", "other_half", "rows_of", "taken", "with_answer"]


def rows_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """Rows of a call: the first dimension of its first tensor that is no mere vector; 0 if there is none."""
    return next((len(value) for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim >= 2), 0)


def taken(value: Any, rows: slice, total: int) -> Any:
    """`value` with `rows` alone of every tensor in it that has `total` of them."""
    if isinstance(value, Tensor):
        return value[rows] if value.ndim and len(value) == total else value
    if isinstance(value, Mapping):
        return {key: taken(part, rows, total) for key, part in value.items()}
    if type(value) in (list, tuple):
        return type(value)(taken(part, rows, total) for part in value)
    return value


def other_half(rows: slice, total: int) -> slice:
    """The rows of the other half."""
    return slice(total // 2, total) if rows.start == 0 else slice(0, total // 2)


def joined(conditional: Tensor, unconditional: Tensor, rows: slice) -> Tensor:
    """Both halves, [2B, ...], in the order in which `rows` are the conditional ones."""
    return torch.cat([conditional, unconditional] if rows.start == 0 else [unconditional, conditional])


def answer_of(output: Any) -> Tensor:
    """The tensor in what a diffusers network returns: the tensor itself, the first of a tuple, or the field `sample`."""
    found = output[0] if isinstance(output, tuple) else output.get("sample") if isinstance(output, Mapping) else output
    if not isinstance(found, Tensor):
        raise NotApplicableError(f"A guided network returned {type(output).__name__}; a tensor, a tuple or a field `sample` is wanted.")
    return found


def with_answer(output: Any, answer: Tensor) -> Any:
    """`output` with its tensor replaced."""
    if isinstance(output, tuple):
        return (answer, *output[1:])
    return type(output)(**{**output, "sample": answer}) if isinstance(output, Mapping) else answer
