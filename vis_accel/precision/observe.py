"""What goes into each layer during a calibration run: its shape, its extremes and a sample of its values, call of the denoiser by call.

The run is the recipe's own: its sampler, its guidance, its cache, its token reduction are on the target already, since precision is
applied after them. So the values are those the layer will meet (Li et al. 2023, arXiv:2302.04304, sec. 3.2: activations of a denoiser
drift with time, so a calibration covers all of its steps).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

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
        whole: a few inputs of each call, as they are, for methods that ask for them; `calls` says of which.
        keep: how many a call.
        joint: where the input channels are two groups side by side, the width of the first; 0: they are one.
    """

    low: dict[int, float] = field(default_factory=dict)
    high: dict[int, float] = field(default_factory=dict)
    samples: dict[int, list[Tensor]] = field(default_factory=dict)
    whole: list[Tensor] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    keep: int = 0
    joint: int = 0
    halves: tuple[Seen, ...] = ()

    def __post_init__(self) -> None:
        if self.joint:
            self.halves = (Seen(keep=self.keep), Seen(keep=self.keep))

    def add(self, index: int, x: Tensor) -> None:
        """Takes in one call's input, any shape."""
        x = x.detach()
        if self.keep:
            chosen = torch.linspace(0, len(x) - 1, min(self.keep, len(x))).long()  # over both halves of a guided call
            self.whole.append(x[chosen].float().clone())
            self.calls.append(index)
        low, high = (float(end) for end in torch.aminmax(x))
        self.low[index] = min(self.low.get(index, 0.0), low)
        self.high[index] = max(self.high.get(index, 0.0), high)
        step = max(1, x.numel() // SAMPLED)
        self.samples.setdefault(index, []).append(x.flatten()[::step].float().cpu())
        if self.joint:
            for half, part in zip(self.halves, (x[:, : self.joint], x[:, self.joint :]), strict=True):
                half.add(index, part)

    def forget_inputs(self) -> None:
        """Frees the inputs that were kept whole."""
        for one in (self, *self.halves):
            one.whole.clear()

    def range(self, bits: int, clip: bool, index: int | None = None) -> Range:
        """The range of all calls, or of one; clipped where that loses less."""
        at = list(self.low) if index is None else [index]
        low, high = min(self.low[i] for i in at), max(self.high[i] for i in at)
        if not clip:
            return Range.of(low, high, bits)
        return best_range(torch.cat([part for i in at for part in self.samples[i]]), low, high, bits)


@contextmanager
def observed(
    layers: Sequence[Layer],
    moment: Callable[[], int] = lambda: 0,
    *,
    keep: Mapping[Layer, int] | None = None,
    joints: Mapping[nn.Module, int] | None = None,
) -> Iterator[dict[Layer, Seen]]:
    """While open, every call of a layer is written down; layers appear in the order in which they are first called.

    Args:
        layers: of one network.
        moment: the index of the denoiser's call that is under way, where calls are told apart.
        keep: of a layer, how many rows of each call are kept whole; none, if it is not there.
        joints: convolutions whose input channels are two groups, and the width of the first.
    """
    found: dict[Layer, Seen] = {}

    def watch(layer: Layer) -> Callable[..., None]:
        def look(module: Any, inputs: tuple[Any, ...]) -> None:
            layer.see(inputs[0])
            if layer not in found:
                found[layer] = Seen(keep=(keep or {}).get(layer, 0), joint=(joints or {}).get(layer.module, 0))
            found[layer].add(moment(), inputs[0])

        return look

    hooks = [layer.module.register_forward_pre_hook(watch(layer)) for layer in layers]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
