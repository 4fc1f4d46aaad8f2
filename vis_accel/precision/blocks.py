"""The blocks a denoiser is made of, and what they were given and gave in a calibration run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Example", "answer_of", "blocks_of", "recorded"]

LISTS = ("resnets", "attentions", "transformer_blocks", "single_transformer_blocks", "blocks")  # whose members add to a stream


class Example(NamedTuple):
    """A few rows of one call of a block.

    Attributes:
        call: its index in the run.
        args, kwargs: what the block was given.
        answer: what it gave.
    """

    call: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    answer: Tensor


def blocks_of(network: nn.Module, layers: Collection[nn.Module]) -> dict[nn.Module, list[nn.Module]]:
    """The innermost blocks of residual streams, in the network's order, and those of `layers` that are inside."""
    found: dict[nn.Module, list[nn.Module]] = {}
    taken = set[nn.Module]()
    lists = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.ModuleList)]
    for _, members in sorted((pair for pair in lists if pair[0].split(".")[-1] in LISTS), key=lambda pair: -pair[0].count(".")):
        for member in members:
            inside = [module for module in member.modules() if module in layers and module not in taken]
            if inside:
                found[member] = inside
                taken.update(inside)
    order = {module: index for index, module in enumerate(network.modules())}
    return {block: found[block] for block in sorted(found, key=order.__getitem__)}


def answer_of(output: Any) -> Tensor:
    """The stream a block gives out."""
    found: Tensor = output if isinstance(output, Tensor) else output[0]
    return found


@contextmanager
def recorded(blocks: Collection[nn.Module], moment: Callable[[], int], keep: int | None) -> Iterator[dict[nn.Module, list[Example]]]:
    """While open, `keep` rows of every call of these blocks are written down; None: all."""
    found: dict[nn.Module, list[Example]] = {block: [] for block in blocks}

    def look(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        answer = answer_of(output)
        count = len(answer) if keep is None else min(keep, len(answer))
        rows = torch.linspace(0, len(answer) - 1, count).long()  # over both halves of a guided call

        def few(value: Any) -> Any:
            return value.detach()[rows].clone() if isinstance(value, Tensor) and value.ndim and len(value) == len(answer) else value

        kept = {name: few(value) for name, value in kwargs.items()}
        found[block].append(Example(moment(), tuple(few(value) for value in args), kept, few(answer)))

    hooks = [block.register_forward_hook(look, with_kwargs=True) for block in blocks]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
