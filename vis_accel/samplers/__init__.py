"""Samplers: solvers, schedules, noise models, and the plain loop that runs them.

noise = NoiseModel.from_config(pipe.scheduler.config)
sigmas = schedules.create("trailing", 12, noise)
image = sample(noise.denoiser(network), create("dpmpp"), z / noise.alpha(sigmas[0]), sigmas)
"""

from __future__ import annotations

from vis_accel import registry
from vis_accel.errors import UnknownNameError
from vis_accel.samplers import schedules
from vis_accel.samplers.driver import AdaptiveError, NoiseStream, plan, sample
from vis_accel.samplers.noise import SIGMA_CAP, Evaluation, NoiseModel
from vis_accel.samplers.solver import Solver

__all__ = [
    "SIGMA_CAP",
    "AdaptiveError",
    "Evaluation",
    "NoiseModel",
    "NoiseStream",
    "Solver",
    "create",
    "plan",
    "sample",
    "schedules",
]


def create(name: str, **options: object) -> Solver:
    """Builds a solver by its registered name: `create("dpm", order=3)`.

    Raises:
        UnknownNameError: a name that is no sampler, or an option it does not have, with the closest that are.
        UsageError: a value an option refuses.
    """
    name = registry.ALIASES.get(name, name)
    found = registry.load(name) if name in registry.entries() else None
    if found is None or not issubclass(found, Solver):
        raise UnknownNameError.of("sampler", name, (known for known, entry in registry.entries().items() if entry.family == "sampler"))
    return found.from_options(options)
