"""Adaptive rounding: each weight goes up or down as an output wants it, not to the nearer whole number.

Paper    Nagel et al. 2020, arXiv:2004.10568: W_q = s clip(floor(W / s) + h(V), n, p) with the rectified sigmoid
         h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), zeta = 1.1, gamma = -0.1 (eq. 23);
         minimise |y(W) - y(W_q)|^2 + lambda sum (1 - |2 h - 1|^beta) (eq. 21, 24, 25), beta falling from 20 to 2: every h ends at 0 or 1.
Output   of a layer, or of a whole block at once (Li et al. 2021, arXiv:2102.05426, sec. 3.2): the layers of a block then make good each
         other's errors.
Data     inputs of a calibration run over all steps of a sampler (Li et al. 2023, arXiv:2302.04304, sec. 3.2), rounded as they will be:
         what the weights' errors and the activations' have in common can then cancel.
Cost     `iterations` forward and backward passes on a few inputs, a layer or block at a time, so memory is that one's.
Differs  from Li et al. 2021: squared errors without the Fisher information; the scales of weights and activations stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vis_accel.precision.layers import float_layer
from vis_accel.precision.rounding import fake_activation, levels

__all__ = ["SoftWeight", "adapted", "settle"]

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


class SoftWeight:
    """The weight of a layer between rounding down and up.

    Args:
        weight: float, [O, ...].
        scales: float32 [O].
        bits: of a weight.
    """

    def __init__(self, weight: Tensor, scales: Tensor, bits: int) -> None:
        weight = weight.detach().float()
        self._along = scales.reshape([-1, *[1] * (weight.ndim - 1)])
        self._top = int(2 ** (bits - 1) - 1)
        self._low = (weight / self._along).floor()
        part = (weight / self._along - self._low).clamp(0.01, 0.99)
        self.v = (-torch.log((ZETA - GAMMA) / (part - GAMMA) - 1)).requires_grad_()  # h(V) = part: nothing is rounded yet

    def values(self) -> Tensor:
        """The weight as it is now, differentiable in V."""
        return (self._low + gate(self.v)).clamp(-self._top, self._top) * self._along

    def activation(self, x: Tensor, scale: Tensor, zero: Tensor, bits: int, step: Tensor) -> Tensor:
        """x rounded; its gradient is that of clipping (Esser et al. 2019, arXiv:1902.08153, eq. 5, in x)."""
        return straight_through(x, scale, zero, bits)

    def undecided(self, beta: float) -> Tensor:
        """The regulariser: 0 once every weight has gone up or down."""
        return (1 - (2 * gate(self.v) - 1).abs().pow(beta)).sum()

    def whole(self) -> Tensor:
        """Whole numbers, int8, the weight's shape."""
        return (self._low + (gate(self.v.detach()) >= 0.5)).clamp(-self._top, self._top).to(torch.int8)


def straight_through(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """x rounded, with the slope of clipping: 1 inside the range, 0 outside."""
    inside = torch.clamp(x, -zero * scale, (levels(bits) - zero) * scale)
    return inside + (fake_activation(x.detach(), scale, zero, bits) - inside).detach()


@torch.enable_grad()
def settle(softs: Sequence[SoftWeight], loss_of: Callable[[torch.Generator], Tensor], *, iterations: int, seed: int = 0) -> None:
    """Minimises an output's error over the rounding of some weights.

    Args:
        softs: whose V are moved.
        loss_of: draws a batch by the generator and gives the error of the output with `values()` as weights.
        iterations: steps of Adam.
        seed: of the batches.
    """
    unknowns = [soft.v for soft in softs]
    optimizer, random = torch.optim.Adam(unknowns, lr=RATE), torch.Generator().manual_seed(seed)
    for step in range(iterations):
        loss, beta = loss_of(random), beta_at(step, iterations)
        if beta is not None:
            loss = loss + LAMBDA * torch.stack([soft.undecided(beta) for soft in softs]).sum()
        for v, slope in zip(unknowns, torch.autograd.grad(loss, unknowns), strict=True):
            v.grad = slope
        optimizer.step()


def apart(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error, summed over the channels of an image (dim 1) or of a token (last dim), mean over the rest."""
    squares = (found - wanted).pow(2)
    return squares.sum(1).mean() if squares.ndim > 3 else squares.sum(-1).mean()


def adapted(
    module: nn.Linear | nn.Conv2d, scales: Tensor, bits: int, inputs: Tensor, rounded: Tensor, *, iterations: int, seed: int = 0
) -> Tensor:
    """Whole-number weights that reproduce one layer's outputs best.

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
    soft = SoftWeight(module.weight, scales, bits)
    bias = None if module.bias is None else module.bias.detach()
    with torch.no_grad():
        wanted = float_layer(module, inputs, module.weight.detach())

    def loss(random: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(inputs), generator=random)[:BATCH]
        return apart(float_layer(module, rounded[chosen], soft.values(), bias), wanted[chosen])

    settle([soft], loss, iterations=iterations, seed=seed)
    return soft.whole()
