"""A solver's generator, pushed: the network's outputs come in one at a time, and its next input goes out.

Scale    a sample is x_t = alpha x in the network's own scale; the solver works on x in float32 or better. What was done to a sample
         between two steps (a callback, a mask) reaches the solver: x is read from the sample that comes in. Only values that come back
         as they went out are taken at the precision they had here.
Cost     where the very tensor comes back that went out, untouched, the conversion of the network's output and one scaling; else four
         elementwise operations more. Nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor

from vis_accel.samplers.driver import LatentNoise
from vis_accel.samplers.noise import Evaluation, NoiseModel, split_variance
from vis_accel.samplers.solver import Solver


class Push:
    """One run, from its first step to its last.

    Args:
        solver: whose generator is run.
        noise: of the network whose outputs are pushed.
        knots: of this run; the tail of a schedule is a schedule.
        sample: [B, ...], what the network is called with first, in its own scale.

    Attributes:
        finished: whether the last step is done.
    """

    def __init__(self, solver: Solver, noise: NoiseModel, knots: tuple[float, ...], sample: Tensor) -> None:
        self.noise, self.finished = noise, False
        x = _widened(sample) / noise.alpha(knots[0])
        self.draws = LatentNoise(x)
        self.generator: Generator[Any, Any, Tensor] = solver.solve(x, knots, noise=self.draws)
        self.x, self.sigma = next(self.generator)
        self._sent: tuple[Tensor, int] | None = None  # what `advance` gave out, and its version

    def restart(self, solver: Solver, knots: tuple[float, ...]) -> None:
        """Goes on with a fresh generator, which has no history, from the request that waits for its answer; `knots` begin at its level."""
        self.generator.close()
        self.generator = solver.solve(self.x, knots, noise=self.draws)
        self.x, self.sigma = next(self.generator)

    def advance(self, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Takes one output of the network.

        Args:
            output: [B, C, ...], or [B, 2C, ...] from a network with learned variance.
            sample: [B, C, ...], what the network was called with.

        Returns:
            The network's next input and the denoised image, both in the dtype of `sample`.
        """
        wide, share = _widened(sample), None
        if output.shape[1] == 2 * sample.shape[1]:
            output, share = split_variance(_widened(output))
        x = self.x if self._is_as_sent(sample) else self._read(sample, wide)
        denoised = self.noise.denoised(_widened(output), wide, self.sigma)
        try:
            self.x, self.sigma = self.generator.send((x, Evaluation(denoised, share)))
        except StopIteration as end:
            self.finished, self.x, self.sigma = True, end.value, 0.0
        following = (self.noise.alpha(self.sigma) * self.x).to(sample.dtype)
        self._sent = None if following.is_inference() else (following, following._version)  # inference tensors have no version
        return following, denoised.to(sample.dtype)

    def _is_as_sent(self, sample: Tensor) -> bool:
        return self._sent is not None and sample is self._sent[0] and sample._version == self._sent[1]

    def _read(self, sample: Tensor, wide: Tensor) -> Tensor:
        """x of a sample by its values: pipelines stack and cut the tensor they were given, callbacks edit it in place."""
        alpha = self.noise.alpha(self.sigma)
        return torch.where(sample == (alpha * self.x).to(sample.dtype), self.x, wide / alpha)


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
