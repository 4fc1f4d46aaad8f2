"""The push form of a solver: it stands in as `pipe.scheduler` in a stock diffusers pipeline.

A pipeline asks its scheduler for times, calls its network at each, and hands the output to `step`. Here `set_timesteps` plans the run (a
dry run lists the noise levels the solver will ask for) and `step` converts the output to the denoised image and passes it to the
solver's generator, which answers with the next request. So the mathematics is the generator that `driver.sample` pulls, and nothing
else: for equal networks both give the same result to rounding.

Scale    the pipeline's sample is x_t = alpha x in the network's own scale; the solver works on x in float32 or better. What a pipeline or
         a callback did to the sample between two steps reaches the solver: x is read from the sample it hands in. Only the very tensor
         that was handed out is taken at the precision it had here.
Life     the generator exists from a run's first step to its last, and is left out of copies: a live one could not be copied or pickled.
Times    one entry per request, float32; fractional where the noise level lies between two of the network's times.
"""

from __future__ import annotations

import copy
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import ConfigMixin, SchedulerMixin
from torch import Tensor

from vis_accel.errors import UsageError
from vis_accel.samplers import schedules
from vis_accel.samplers.driver import LatentNoise, plan
from vis_accel.samplers.noise import SIGMA_CAP, Evaluation, NoiseModel
from vis_accel.samplers.solver import Solver

__all__ = ["SolverScheduler", "StepOutput"]


class StepOutput(NamedTuple):
    """What `step` returns: the sample for the next call of the network, and the denoised image, both in the dtype of the sample."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class SolverScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """A solver in the place of a pipeline's scheduler.

    Args:
        solver: with `steps` of its own, or None to take the call's number.
        noise: of the pipeline's network.
        source: the scheduler it replaces; `config` is the source's, so that `X.from_config(pipe.scheduler.config)` still works.
        pipeline: asked for what only it knows (where SDXL's base stops).
    """

    init_noise_sigma = 1.0  # variance-preserving and flow models start from unit noise

    def __init__(self, solver: Solver, noise: NoiseModel, source: Any, pipeline: Any) -> None:
        self.solver, self.noise, self.source, self.pipeline = solver, noise, source, pipeline
        self._internal_dict = source.config
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self.order = 1
        self.knots: tuple[float, ...] = ()
        self.requests: list[float] = []
        self._first = 0  # knot at which the run starts
        self._run: _Run | None = None

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_run": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> SolverScheduler:
        twin = SolverScheduler(self.solver, self.noise, copy.deepcopy(self.source, memo), copy.deepcopy(self.pipeline, memo))
        memo[id(self)] = twin
        return twin

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Saves the scheduler it stands in for: a saved pipeline is loaded by stock diffusers, which does not know this class."""
        self.source.save_pretrained(save_directory, *args, **kwargs)

    # What a pipeline calls before the loop

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Plans a run. The recipe's own number of steps wins over the call's.

        Args:
            num_inference_steps: the call's number of steps.
            device: of `timesteps`.
            timesteps: refused: the recipe's schedule decides.
            sigmas: Flux's default ramp, of which only the length counts; refused from others for the same reason.
            mu: the shift a flow pipeline computed for its image size.
        """
        flow = self.noise.kind == "flow"
        if timesteps is not None or (sigmas is not None and not flow):
            raise UsageError(
                f"The call gives its own {'timesteps' if timesteps is not None else 'sigmas'}, but {self.solver.name} has a schedule of its own.",
                hint=f"put them into the recipe: {self.solver.name}(schedule=(sigma, ..., 0))",
            )
        steps = self.solver.steps or num_inference_steps or (len(sigmas) if sigmas is not None else None)
        if steps is None:
            raise UsageError(f"Neither the recipe nor the call says how many steps {self.solver.name} takes.", hint=f"{self.solver.name}(steps=12)")
        self.knots = self._make_knots(int(steps), ramp=sigmas is not None, mu=mu)
        self.requests = plan(self.solver, self.knots)
        self.num_inference_steps = len(self.knots) - 1
        self.order = 2 if len(self.requests) > self.num_inference_steps else 1
        self._refuse_cut_inside_a_step()
        self.timesteps = torch.tensor([self.noise.time_at(s) for s in self.requests], dtype=torch.float32, device=device)
        self._levels = torch.tensor(self.requests, dtype=torch.float64)
        self._first, self._run = 0, None

    def _make_knots(self, steps: int, *, ramp: bool, mu: float | None) -> tuple[float, ...]:
        name = self.solver.schedule
        if self.noise.kind == "flow" and isinstance(name, str) and schedules.resolve(name, self.noise) == "flow":
            return self._shifted_ramp(steps, ramp=ramp, mu=mu)
        return self.solver.knots(steps, self.noise)

    def _shifted_ramp(self, steps: int, *, ramp: bool, mu: float | None) -> tuple[float, ...]:
        """The source scheduler's own knots: how it shifts (statically, by image size, to a last value) is its business."""
        twin = type(self.source).from_config(self.source.config)
        options: dict[str, Any] = {} if mu is None else {"mu": mu}
        if ramp:
            twin.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).tolist(), **options)
        else:
            twin.set_timesteps(steps, **options)
        return tuple(min(s / (1 - s), SIGMA_CAP) if s < 1 else SIGMA_CAP for s in twin.sigmas.double().tolist())

    def _refuse_cut_inside_a_step(self) -> None:
        if self.order > 1 and getattr(self.pipeline, "_denoising_end", None) is not None:
            raise UsageError(
                f"denoising_end may stop inside a step of {self.solver.name}, which calls the network more than once a step.",
                hint="use a solver with one call a step: dpm, ddim, euler, unipc",
            )

    def begin_at_knot(self, knot: int) -> Tensor:
        """Lets the next run start at `knot` (0: the first); returns the times left. img2img starts here."""
        left = len(plan(self.solver, self.knots[knot:])) if knot < len(self.knots) - 1 else 0
        self._first = knot
        return self.timesteps[len(self.requests) - left :]

    def set_begin_index(self, begin_index: int = 0) -> None:
        """As diffusers': the index, in `timesteps`, of the first request of the next run; it must be the first request of a step."""
        knot = next((k for k in range(len(self.knots)) if len(self.requests) - len(plan(self.solver, self.knots[k:])) == begin_index), None)
        if knot is None:
            raise UsageError(f"{self.solver.name} cannot start at call {begin_index}: that is inside a step.")
        self._first = knot

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The identity: samples are kept in the network's own scale."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noises clean samples to planned times: alpha (x0 + sigma noise).

        Inpainting asks for later times of the run by value only, so the value is looked up among the plan's.
        """
        times = timesteps.to(self.timesteps.device, torch.float32).reshape(-1, 1)
        levels = self._levels.to(times.device)[(self.timesteps - times).abs().argmin(dim=1)]
        if self.noise.kind == "flow":
            signal, deviation = 1 / (1 + levels), levels / (1 + levels)
        else:
            signal, deviation = (1 + levels.square()).rsqrt(), levels / (1 + levels.square()).sqrt()
        shape = (-1, *[1] * (original_samples.ndim - 1))
        signal, deviation = (part.to(original_samples.device, original_samples.dtype).reshape(shape) for part in (signal, deviation))
        return signal * original_samples + deviation * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name and with the argument order of the flow schedulers."""
        return self.add_noise(sample, noise, timestep)

    # The loop

    def step(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Any = None, return_dict: bool = True, **options: Any
    ) -> StepOutput:
        """Takes the network's output for the current request to the sample of the next.

        Args:
            model_output: [B, C, ...], or [B, 2C, ...] from a network with learned variance.
            timestep: not looked at: the plan knows where the run is.
            sample: [B, C, ...], what the network was called with.
            generator: not used: stochastic solvers draw from a stream per image, seeded by the image's first latent.
            return_dict: either way the result has `prev_sample` and can be indexed.
            options: what pipelines pass to the scheduler they were written for; a demand that is not met is refused.
        """
        self._refuse(options)
        if self._run is None:
            self._run = _Run(self.solver, self.noise, self.knots[self._first :], sample)
        previous, denoised = self._run.advance(model_output, sample)
        if self._run.finished:
            self._run = None
        return StepOutput(previous, denoised)

    def _refuse(self, options: dict[str, Any]) -> None:
        eta = options.get("eta")
        if eta and eta != getattr(self.solver, "eta", None):
            raise UsageError(f"The call asks for eta={eta}, the recipe for {self.solver}.", hint=f"ddim(eta={eta})")


class _Run:
    """One run of the generator, from its first step to its last."""

    def __init__(self, solver: Solver, noise: NoiseModel, knots: tuple[float, ...], sample: Tensor) -> None:
        self.noise, self.finished = noise, False
        x = _widened(sample) / noise.alpha(knots[0])
        self.generator: Generator[Any, Any, Tensor] = solver.solve(x, knots, noise=LatentNoise(x))
        self.x, self.sigma = next(self.generator)
        self.handed_out = sample if self.x is x else None

    def advance(self, output: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        wide, log_variance = _widened(sample), None
        if output.shape[1] == 2 * sample.shape[1]:
            output, log_variance = self.noise.split_variance(_widened(output), self.sigma)
        x = self.x if sample is self.handed_out else wide / self.noise.alpha(self.sigma)
        denoised = self.noise.denoised(_widened(output), wide, self.sigma)
        try:
            self.x, self.sigma = self.generator.send((x, Evaluation(denoised, log_variance)))
        except StopIteration as end:
            self.finished, self.x, self.sigma = True, end.value, 0.0
        self.handed_out = (self.noise.alpha(self.sigma) * self.x).to(sample.dtype)
        return self.handed_out, denoised.to(sample.dtype)


def _widened(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
