"""Adaptive rounding: each weight goes up or down as the layer's output wants it, not to the nearer whole number.

Paper    Nagel et al. 2020, arXiv:2004.10568: W_q = s clip(floor(W / s) + h(V), n, p) with the rectified sigmoid
         h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), zeta = 1.1, gamma = -0.1 (eq. 23);
         minimise |y(W) - y(W_q)|^2 + lambda sum (1 - |2 h - 1|^beta) (eq. 21, 24, 25), beta falling from 20 to 2: every h ends at 0 or 1.
Data     inputs the layer was given in a calibration run over all steps of a sampler (Li et al. 2023, arXiv:2302.04304, sec. 3.2), rounded
         as they will be: what the weights' errors and the activations' have in common can then cancel.
Cost     `iterations` forward and backward passes of a layer on a few inputs; a layer at a time, so memory is one layer's.
Differs  from Li et al.: layer by layer, where they reconstruct blocks; the scales stay as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vis_accel.precision.layers import float_layer

__all__ = ["adapted"]

ZETA, GAMMA = 1.1, -0.1
LAMBDA = 0.01
WARM = 0.2  # of the iterations without the regulariser
HOT, COLD = 20.0, 2.0  # beta
RATE = 1e-2  # of Adam
BATCH = 16


def gate(v: Tensor) -> Tensor:
    """h(V), 0 .. 1."""
    return (v.sigmoid() * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def beta_at(step: int, steps: int) -> float | None:
    """The exponent of the regulariser; None while it is off."""
    start = WARM * steps
    return None if step < start else COLD + (HOT - COLD) * max(0.0, 1 - (step - start) / (steps - start))


@torch.enable_grad()
def adapted(
    module: nn.Linear | nn.Conv2d, scales: Tensor, bits: int, inputs: Tensor, rounded: Tensor, *, iterations: int, seed: int = 0
) -> Tensor:
    """Whole-number weights that reproduce the layer's outputs best.

    Args:
        module: the float layer.
        scales: float32 [O].
        bits: of a weight.
        inputs: N x ..., what the float layer is given.
        rounded: the same, as the rounded layer will be given them.
        iterations: steps of Adam.
        seed: of the batches.

    Returns:
        int8, the weight's shape.
    """
    weight, along = module.weight.detach().float(), scales.reshape([-1, *[1] * (module.weight.ndim - 1)])
    top = int(2 ** (bits - 1) - 1)
    low = (weight / along).floor()
    part = (weight / along - low).clamp(0.01, 0.99)
    v = (-torch.log((ZETA - GAMMA) / (part - GAMMA) - 1)).requires_grad_()  # h(V) = part: where rounding begins, nothing is rounded yet
    with torch.no_grad():
        wanted = float_layer(module, inputs, module.weight.detach())
    optimizer, random = torch.optim.Adam([v], lr=RATE), torch.Generator().manual_seed(seed)
    for step in range(iterations):
        chosen = torch.randperm(len(inputs), generator=random)[:BATCH]
        soft = (low + gate(v)).clamp(-top, top) * along
        bias = None if module.bias is None else module.bias.detach()
        apart = (float_layer(module, rounded[chosen], soft, bias) - wanted[chosen]).pow(2)
        loss = apart.sum(1).mean() if apart.ndim > 2 else apart.sum(-1).mean()
        beta = beta_at(step, iterations)
        if beta is not None:
            loss = loss + LAMBDA * (1 - (2 * gate(v) - 1).abs().pow(beta)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (low + (gate(v.detach()) >= 0.5)).clamp(-top, top).to(torch.int8)
