"""The push form of a solver: it stands in as `pipe.scheduler` in a stock diffusers pipeline.

A pipeline asks its scheduler for times, calls its network at each, and hands the output to `step`. Here `set_timesteps` plans the run (a
dry run lists the noise levels the solver will ask for) and `step` converts the output to the denoised image and passes it to the
solver's generator, which answers with the next request. So the mathematics is the generator that `driver.sample` pulls, and nothing
else: for equal networks both give the same result to rounding.

Scale    samples stay in the network's own scale, x_t = alpha x, all the way.
Life     the generator exists from a run's first step to its last, and is left out of copies: a live one could not be copied or pickled.
Times    one entry per request, float32; fractional where the noise level lies between two of the network's times.
"""

from __future__ import annotations

import copy
import inspect
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from vis_accel.clock import Position
from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.samplers import schedules
from vis_accel.samplers.driver import plan
from vis_accel.samplers.noise import SIGMA_CAP, NoiseModel
from vis_accel.samplers.push import Push
from vis_accel.samplers.solver import Solver

__all__ = ["SolverScheduler", "StepOutput"]


class StepOutput(NamedTuple):
    """What `step` returns: the sample for the next call of the network, and the denoised image, both in the dtype of the sample."""

    prev_sample: Tensor
    pred_original_sample: Tensor


class SolverScheduler(SchedulerMixin, ConfigMixin):
    """A solver in the place of a pipeline's scheduler.

    Args:
        solver: with `steps` of its own, or None to take the call's number.
        noise: of the pipeline's network.
        source: the scheduler it replaces; `config` is the source's, so that `X.from_config(pipe.scheduler.config)` still works.
        pipeline: asked for what only it knows (where img2img starts, where SDXL's base stops).
    """

    init_noise_sigma = 1.0  # variance-preserving and flow models start from unit noise

    def __init__(self, solver: Solver, noise: NoiseModel, source: Any, pipeline: Any) -> None:
        self.solver, self.noise, self.pipeline = solver, noise, pipeline
        self.source: Any = source.source if isinstance(source, SolverScheduler) else source  # a recipe on top of another
        self._internal_dict: Any = self.source.config
        self.num_inference_steps: int | None = None
        self.timesteps = torch.empty(0)
        self.order = 1
        self.knots: tuple[float, ...] = ()
        self.requests: list[float] = []
        self._first = 0  # knot at which the run starts
        self._one_step_call = False
        self._run: Push | None = None
        self._plans = self._calls = 0
        self._clear_due = False

    def __len__(self) -> int:
        return int(self.config["num_train_timesteps"])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_run": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> SolverScheduler:
        pipeline = memo.get(id(self.pipeline), self.pipeline)  # a copy of the scheduler alone must not copy the networks
        twin = SolverScheduler(self.solver, self.noise, copy.deepcopy(self.source, memo), pipeline)
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
            sigmas: refused for the same reason, but for the ramp 1 .. 1/n of which Flux and its kin always give: its length counts.
            mu: the shift a flow pipeline computed for its image size.
        """
        ramp = sigmas is not None and self.noise.kind == "flow" and _is_default_ramp(sigmas)
        if timesteps is not None or (sigmas is not None and not ramp):
            given = "timesteps" if timesteps is not None else "sigmas"
            raise UsageError(
                f"The call gives its own {given}, but {self.solver.name} has a schedule of its own.",
                hint=f"put them into the recipe: {self.solver.name}(schedule=(sigma, ..., 0)), sigma = noise / signal",
            )
        asked = num_inference_steps or (len(sigmas) if sigmas is not None else None)
        own = self.solver.schedule
        steps = self.solver.steps or asked or (len(own) if isinstance(own, tuple) else 0)
        if not steps:
            name = self.solver.name
            raise UsageError(f"Neither the recipe nor the call says how many steps {name} takes.", hint=f"{name}(steps=12)")
        knots = self._make_knots(int(steps), ramp=ramp, mu=mu)
        self.num_inference_steps, self._one_step_call = len(knots) - 1, asked == 1
        self._plan(knots, device)

    def _plan(self, knots: tuple[float, ...], device: str | torch.device | None) -> None:
        self.knots, self._first, self._run = knots, 0, None
        self._plans, self._calls, self._clear_due = self._plans + 1, 0, False
        self.requests = plan(self.solver, knots)
        self.order = 2 if len(self.requests) > len(knots) - 1 else 1
        self._refuse_cut_inside_a_step()
        self.timesteps = torch.tensor([self.noise.time_at(s) for s in self.requests], dtype=torch.float32, device=device)
        scales = [(alpha, alpha * s) for alpha, s in ((self.noise.alpha(s), s) for s in self.requests)]
        self._scales = torch.tensor(scales, dtype=torch.float32, device=device)  # [requests, (signal, noise)]

    def _make_knots(self, steps: int, *, ramp: bool, mu: float | None) -> tuple[float, ...]:
        name, noise = self.solver.schedule, self.noise
        if noise.kind == "flow" and isinstance(name, str):
            if schedules.resolve(name, noise) == "flow":
                return self._shifted_ramp(steps, ramp=ramp, mu=mu)
            if mu is not None and self.config.get("use_dynamic_shifting"):
                noise = replace(noise, shift=mu if self.config.get("time_shift_type") == "linear" else math.exp(mu))
        return self.solver.knots(steps, noise)

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

    def get_timesteps(self, *args: Any, **kwargs: Any) -> tuple[Tensor, int]:
        """Stands in for the method of that name of image-to-image pipelines: which part of the run is left at a strength in 0 .. 1.

        The stock methods slice `timesteps[start * order:]`, which lands inside a step of any solver whose calls per step vary. So the
        pipeline's own method is asked about a run with one call a step, and the run is planned anew from the knot it chose.
        """
        device = self.timesteps.device
        times = torch.tensor([self.noise.time_at(s) for s in self.knots[:-1]], dtype=torch.float32, device=device)
        one_call_a_step = SimpleNamespace(scheduler=SimpleNamespace(timesteps=times, order=1, config=self.config))
        stock = type(self.pipeline).get_timesteps
        call = inspect.signature(stock).bind(one_call_a_step, *args, **kwargs)
        call.arguments.update({"num_inference_steps": len(times)} | ({"timesteps": times} if "timesteps" in call.arguments else {}))
        left = len(stock(*call.args, **call.kwargs)[0])
        if left == 0:
            raise UsageError(f"At this strength none of the {len(times)} steps is left.", hint="raise the strength, or the number of steps")
        self._plan(self.knots[len(times) - left :], device)
        return self.timesteps, left

    def set_begin_index(self, begin_index: int = 0) -> None:
        """As diffusers': the index, in `timesteps`, of the first request of the next run; it must be the first request of a step."""
        if begin_index == 0:
            self._first = 0
            return
        knot = bisect_left(range(len(self.knots) - 1), begin_index, key=self._first_request)
        if self._first_request(knot) != begin_index or self.requests[begin_index] != self.knots[knot]:
            raise UsageError(f"{self.solver.name} cannot start at call {begin_index}: that is inside a step.")
        self._first = knot

    def position(self) -> Position:
        """For the clock: which run this is, which of its calls is under way or comes next, and the noise levels of all."""
        return Position(self._plans, self._first_request(self._first) + self._calls, self.requests)

    def clear_history(self) -> None:
        """Restarts the solver's generator at the call under way or, where that is inside a step, at the next one that begins a step.

        For use from within a call of the network. A generator that would then ask for other calls than those planned goes on: the start
        of `pndm` is not cut short.
        """
        self._clear_due = self._run is not None  # before the first answer there is nothing to forget
        self._clear()

    def _clear(self) -> None:
        if not self._clear_due or self._run is None:
            return
        try:
            solver = self.solver.resumed()
        except NotApplicableError:  # one that cannot go on at a knot needs its beginning, and keeps no history
            self._clear_due = False
            return
        at = self.position().index
        knot = bisect_left(range(len(self.knots) - 1), at, key=self._first_request)
        if knot < len(self.knots) - 1 and plan(solver, self.knots[knot:]) == self.requests[at:]:
            self._run.restart(solver, self.knots[knot:])
            self._clear_due = False

    def _first_request(self, knot: int) -> int:
        if knot == 0 or self.order == 1:
            return knot
        return len(self.requests) - (len(plan(self.solver.resumed(), self.knots[knot:])) if knot < len(self.knots) - 1 else 0)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The identity: samples are kept in the network's own scale."""
        return sample

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noises clean samples to planned times: alpha (x0 + sigma noise).

        Inpainting asks for later times of the run by value only, so the value is looked up among the plan's.
        """
        times = timesteps.to(self.timesteps.device, torch.float32).reshape(-1, 1)
        scales = self._scales[(self.timesteps - times).abs().argmin(dim=1)].to(original_samples.device)
        signal, deviation = scales.reshape(-1, 2, *[1] * (original_samples.ndim - 1)).unbind(1)
        return (signal * original_samples + deviation * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise` under the name and with the argument order of the flow schedulers."""
        return self.add_noise(sample, noise, timestep)

    # The loop

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
        eta: float | None = None,
        **options: Any,
    ) -> StepOutput:
        """Takes the network's output for the current request to the sample of the next.

        Args:
            model_output: [B, C, ...], or [B, 2C, ...] from a network with learned variance.
            timestep: not looked at: the plan knows where the run is.
            sample: [B, C, ...], what the network was called with.
            generator: not used: stochastic solvers draw from a stream per image, seeded by the image's first latent.
            return_dict: either way the result has `prev_sample` and can be indexed.
            eta: the call's; 0 is every pipeline's default and means nothing, another value must be the recipe's.
            options: what pipelines pass to the scheduler they were written for; a demand that is not met is refused.
        """
        self._refuse(eta, options)
        if self._run is None:
            solver = self.solver.resumed() if self._first else self.solver
            self._run = Push(solver, self.noise, self.knots[self._first :], sample)
        previous, denoised = self._run.advance(model_output, sample)
        self._calls += 1
        if self._run.finished:
            self._run = None
        self._clear()
        # PixArt takes the denoised image for the next sample when it is called with one step, and the recipe may have more.
        return StepOutput(previous, previous if self._one_step_call else denoised)

    def _refuse(self, eta: float | None, options: dict[str, Any]) -> None:
        if eta and eta != getattr(self.solver, "eta", None):
            raise UsageError(f"The call asks for eta={eta}, the recipe for {self.solver}.", hint=f"accelerate(pipe, 'ddim(eta={eta})')")
        # A solver's d = (x - D) / sigma follows the clipped D, which is what use_clipped_model_output=True asks for.
        strange = sorted(name for name, value in options.items() if value is not None and name != "use_clipped_model_output")
        if strange:
            raise UsageError(f"The pipeline asks {self.solver.name} for {', '.join(strange)}, which it does not know.")


def _is_default_ramp(sigmas: Sequence[float]) -> bool:
    n = len(sigmas)
    return all(abs(float(s) - (1 - i / n)) < 1e-6 for i, s in enumerate(sigmas))
