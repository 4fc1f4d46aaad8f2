"""Is a layer faster in integers on this machine? Timed, once for every shape, before anything is replaced.

Both forms are timed alternately on numbers of the shape a run showed; the shortest times count, since what disturbs a measurement only adds
to it. Rounding the activations is not in it: compiled, it becomes part of the kernel before the layer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache

import torch
from torch import nn

from vis_accel.precision import kernels
from vis_accel.precision.layers import Layer, float_layer
from vis_accel.precision.rounding import channel_scales, round_weight

__all__ = ["slower"]

REPEATS = 5
MARGIN = 1.05  # what integers must win by: for less, rounding is not worth it


def slower(layer: Layer) -> bool:
    """Whether the layer's integer kernel is no faster than its float one, for the input and the dtype a run showed."""
    module = layer.module
    geometry = (module.stride, module.padding, module.dilation) if isinstance(module, nn.Conv2d) else ()
    return _slower(layer.shape, tuple(module.weight.shape), geometry, layer.dtype, torch.get_num_threads())


@cache
@torch.no_grad()
def _slower(shape: tuple[int, ...], weight: tuple[int, ...], geometry: tuple[object, ...], dtype: torch.dtype, threads: int) -> bool:
    module = _twin(weight, geometry).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    whole = torch.randint(0, 255, shape, dtype=torch.uint8)
    if geometry:
        x, whole = (one.contiguous(memory_format=torch.channels_last) for one in (x, whole))
    scales = channel_scales(module.weight)
    packed = kernels.pack(module, round_weight(module.weight, scales), scales)
    scale, zero = torch.tensor(0.02), torch.tensor(128, dtype=torch.int32)
    forms: tuple[Callable[[], object], ...] = (lambda: float_layer(module, x, module.weight), lambda: packed(whole, scale, zero, dtype))
    best = [float("inf")] * 2
    try:
        for _ in range(1 + REPEATS):  # the first of each also prepares
            for i, form in enumerate(forms):
                started = time.perf_counter()
                form()
                best[i] = min(best[i], time.perf_counter() - started)
    finally:
        packed.free()
    return best[1] * MARGIN > best[0]


def _twin(weight: tuple[int, ...], geometry: tuple[object, ...]) -> nn.Linear | nn.Conv2d:
    """A layer of the same shape."""
    if not geometry:
        return nn.Linear(weight[1], weight[0])
    stride, padding, dilation = geometry
    return nn.Conv2d(weight[1], weight[0], weight[2:], stride, padding, dilation)  # type: ignore[arg-type]
