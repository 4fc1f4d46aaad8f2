"""What goes into each layer during a calibration run: its shape, its extremes and a sample of its values, call of the denoiser by call.

The run is the recipe's own: its sampler, its guidance, its cache, its token reduction are on the target already, since precision is
applied after them. So the values are those the layer will meet (Li et al. 2023, arXiv:2302.04304, sec. 3.2: activations of a denoiser
drift with time, so a calibration covers all of its steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vis_accel.precision.layers import Layer
from vis_accel.precision.rounding import Range, best_range

__all__ = ["Seen", "observed"]

SAMPLED = 4096  # values kept of one call of one layer


@dataclass
class Seen:
    """What a layer was given.

    Attributes:
        low, high: extremes, by the index of the denoiser's call (0 for a network that is called once).
        samples: some of the values, by the same index.
    """

    low: dict[int, float] = field(default_factory=dict)
    high: dict[int, float] = field(default_factory=dict)
    samples: dict[int, list[Tensor]] = field(default_factory=dict)

    def add(self, index: int, x: Tensor) -> None:
        """Takes in one call's input, any shape."""
        x = x.detach()
        low, high = (float(end) for end in torch.aminmax(x))
        self.low[index] = min(self.low.get(index, 0.0), low)
        self.high[index] = max(self.high.get(index, 0.0), high)
        step = max(1, x.numel() // SAMPLED)
        self.samples.setdefault(index, []).append(x.flatten()[::step].float().cpu())

    def range(self, bits: int, clip: bool, index: int | None = None) -> Range:
        """The range of all calls, or of one; clipped where that loses less."""
        at = list(self.low) if index is None else [index]
        low, high = min(self.low[i] for i in at), max(self.high[i] for i in at)
        if not clip:
            return Range.of(low, high, bits)
        return best_range(torch.cat([part for i in at for part in self.samples[i]]), low, high, bits)


@contextmanager
def observed(layers: list[Layer], moment: Callable[[], int] = lambda: 0) -> Iterator[dict[Layer, Seen]]:
    """While open, every call of a layer is written down; layers appear in the order in which they are first called.

    Args:
        layers: of one network.
        moment: the index of the denoiser's call that is under way, where calls are told apart.
    """
    found: dict[Layer, Seen] = {}

    def watch(layer: Layer) -> Callable[..., None]:
        def look(module: Any, inputs: tuple[Any, ...]) -> None:
            layer.see(inputs[0])
            found.setdefault(layer, Seen()).add(moment(), inputs[0])

        return look

    hooks = [layer.module.register_forward_pre_hook(watch(layer)) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
