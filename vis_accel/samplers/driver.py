"""Runs solvers by pulling: the plain loop, the dry run, and the noise of each image.

`sample` is all of sampling without a pipeline; `plan` finds a run's calls by a dry run, never by a formula; `NoiseStream` gives every
image its own generator, so that its noise does not depend on the batch it is in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.samplers import schedules
from vis_accel.samplers.solver import Evaluation, Noise, Past, Solver


class AdaptiveError(NotApplicableError):
    """A solver whose calls depend on the data, where they must be known in advance."""


class NoiseStream:
    """Standard normal noise, one generator per image.

    Called with a tensor `like` [B, ...], it returns the next draw: shape, dtype and device of `like`. Numbers are drawn in float32 on
    the CPU, so a stream is the same on every device and in every precision. The k-th draw of an image depends on its seed alone.
    """

    def __init__(self, seeds: Sequence[int]) -> None:
        """Makes one generator per seed, image 0 first; seeds are taken modulo 2^63."""
        self._generators = [torch.Generator().manual_seed(seed % 2**63) for seed in seeds]

    @classmethod
    def from_latent(cls, x: Tensor) -> NoiseStream:
        """Seeds each image's generator from its own first latent, x [B, ...]: equal latents get equal noise.

        Copies x to the host once.
        """
        rows = x.detach().to("cpu", torch.float32).contiguous()
        digests = (hashlib.sha256(row.numpy().tobytes()).digest() for row in rows)
        return cls([int.from_bytes(digest[:8], "little") for digest in digests])

    def __call__(self, like: Tensor) -> Tensor:
        if like.ndim == 0 or like.shape[0] != len(self._generators):
            raise UsageError(f"This noise stream is for {len(self._generators)} images; got a tensor of shape {tuple(like.shape)}.")
        rows = [torch.randn(like.shape[1:], generator=g, dtype=torch.float32) for g in self._generators]
        return torch.stack(rows).to(like.device, like.dtype)


class LatentNoise:
    """A NoiseStream that waits for the first draw, so that deterministic solvers never pay for reading the latent."""

    def __init__(self, x: Tensor) -> None:
        self._x, self._stream = x, None if x.ndim else NoiseStream([0])

    def __call__(self, like: Tensor) -> Tensor:
        self._stream = self._stream or NoiseStream.from_latent(self._x)
        return self._stream(like)


def sample(
    denoise: Callable[[Tensor, float], Tensor | Evaluation],
    solver: Solver,
    x: Tensor,
    sigmas: Sequence[float],
    *,
    noise: Noise | None = None,
    history: Sequence[Past] = (),
) -> Tensor:
    """Solves from sigmas[0] to sigmas[-1].

    Args:
        denoise: D(x, sigma), in the solvers' space: x data scale 1, sigma noise over signal (`NoiseModel.denoiser` makes one).
        solver: the solver; its own `steps` and `schedule` are not read.
        x: [B, ...], the state at sigmas[0]: for pure noise z, z / alpha(sigmas[0]) where the model is VP or flow.
        sigmas: the knots, strictly falling (`schedules.create`).
        noise: a NoiseStream; None: one seeded from x, if the solver asks for noise at all.
        history: exact evaluations from before the first knot.

    Returns:
        The state at sigmas[-1]; at 0 it is the image.

    Raises:
        UsageError: knots that do not fall, or a denoiser whose answer has another shape than x.
    """
    schedules.check(sigmas)
    run = solver.solve(x, tuple(sigmas), noise=noise or LatentNoise(x), history=history)
    try:
        x, sigma = next(run)
        while True:
            answer = denoise(x, sigma)
            y = answer if isinstance(answer, Evaluation) else Evaluation(answer)
            if y.denoised.shape != x.shape:
                raise UsageError(f"The denoiser must return the shape it is given, {tuple(x.shape)}; got {tuple(y.denoised.shape)}.")
            x, sigma = run.send((x, y))
    except StopIteration as stop:
        result: Tensor = stop.value
        return result


def plan(solver: Solver, sigmas: Sequence[float]) -> list[float]:
    """The noise levels a run asks for, in order, found by dry runs on tiny tensors.

    A run that goes on at knot i > 0, behind the start of solvers that have one, asks for `plan(solver.resumed(), sigmas[i:])`, so knot i's
    first request has the index `len(plan(solver, sigmas)) - len(plan(solver.resumed(), sigmas[i:]))`.

    Raises:
        AdaptiveError: if they depend on the data.
    """
    schedules.check(sigmas)
    zeros = torch.zeros(2, 1, dtype=torch.float64)
    waves = torch.tensor([[0.9], [-0.4]], dtype=torch.float64)
    asked = _dry_run(solver, sigmas, zeros)
    if asked != _dry_run(solver, sigmas, sigmas[0] * waves):
        raise AdaptiveError(f"{solver.name} chooses its calls by looking at the data: it runs in `samplers.sample` only.")
    return asked


def _dry_run(solver: Solver, sigmas: Sequence[float], x: Tensor) -> list[float]:
    asked: list[float] = []
    run = solver.solve(x, tuple(sigmas), noise=None)
    try:
        x, sigma = next(run)
        while True:
            asked.append(sigma)
            if len(asked) > 1000 * len(sigmas):
                raise AdaptiveError(f"{solver.name} made {len(asked)} calls over {len(sigmas) - 1} steps without coming to an end.")
            x, sigma = run.send((x, Evaluation(torch.tanh(3 * x))))  # 0 for zeros, strongly non-linear for all else
    except StopIteration:
        return asked
