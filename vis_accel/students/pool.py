"""What a student's training noises: samples of the teacher itself, so that no data is needed, or images of a folder.

Samples  image i starts from noise of seed `seed + i`, gets class i modulo their number, and is taken to its end by a fast solver with the
         teacher's guidance. Start and end are both kept: the end is also what one step from that start should give. As many paths again
         start from those ends, noised to the student's other knots: what a student meets when it takes several steps. They take the part
         below of twice the solver's knots, as their first step has no history. A student of segments needs what lies between: the states
         of each path at its own knots are kept too, in half precision.
Images   encoded once, mirror images too. Of CIFAR-10's layout (DIR/train/CLASS/*) the last 500 of each class are left out, which every
         bundled model keeps for calibration.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel.distillation import segments
from vis_accel.errors import DataError, UsageError
from vis_accel.files import write_atomic
from vis_accel.recipe import Recipe
from vis_accel.samplers import sample
from vis_accel.samplers.solver import Solver
from vis_accel.students.teacher import Teacher

__all__ = ["Pool", "again", "kept", "of_images", "sampled", "solver_of"]

_BATCH = 128
_NUMBERS = 2**19  # of a batch, where samples are large
_APART = 0.9  # the first of a path's later knots is that much below its start, or lower
_PURE = 0.99  # of the largest noise level


@dataclass(frozen=True, eq=False)
class Pool:
    """Examples.

    Attributes:
        ends: images in the network's space (n x C x H x W).
        labels: their classes (n); 0 without.
        starts: where the paths that end there begin, data scale 1; None where there are no paths.
        places: the student's knots of the starts (n), the highest being pure noise; None where there are no paths.
        states: of the paths on their way (n x knots x C x H x W, float16), where they were asked for.
    """

    ends: Tensor
    labels: Tensor
    starts: Tensor | None = None
    places: Tensor | None = None
    states: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ends)

    def joined(self, other: Pool) -> Pool:
        """This and another, both with paths or both without."""
        if self.starts is None or other.starts is None or self.places is None or other.places is None:
            return Pool(torch.cat([self.ends, other.ends]), torch.cat([self.labels, other.labels]))
        ours, theirs = self.columns(), other.columns()
        return Pool(**{name: torch.cat([column, theirs[name]]) for name, column in ours.items()})

    def columns(self) -> dict[str, Tensor]:
        """What it has, by name."""
        return {spec.name: column for spec in fields(self) if (column := getattr(self, spec.name)) is not None}


@torch.no_grad()
def sampled(
    teacher: Teacher, count: int, *, sampler: str, place: int = 1, through: Sequence[float] = (), seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Pool:  # fmt: skip
    """Samples of the teacher, from pure noise.

    Args:
        count: how many.
        sampler: recipe of a deterministic solver with its steps: "ipndm(steps=8, schedule='karras', order=3)".
        place: the number of the student's highest knot.
        through: noise levels, falling, that the paths shall have among their knots, and at which their states are kept.
        seed: of the first start.

    Raises:
        UsageError: a recipe that is no solver with steps, or one with too few of them for the levels wanted.
    """
    solver = solver_of(sampler)
    knots = segments.through(solver.knots(None, teacher.noise), through)
    if knots[0] < _PURE * teacher.noise.sigma_max:
        raise UsageError(f"{sampler} starts at sigma = {knots[0]:.3g}, not from pure noise.", hint="schedule='karras' or 'trailing'")
    labels = torch.arange(count) % max(1, teacher.classes)
    starts, ends, states = [], [], []
    batch = max(1, min(_BATCH, _NUMBERS // math.prod(teacher.shape)))
    for at in range(0, count, batch):
        rows = range(at, min(at + batch, count))
        noise = torch.stack([torch.randn(teacher.shape, generator=torch.Generator().manual_seed(seed + row)) for row in rows])
        starts.append(noise / teacher.noise.alpha(knots[0]))
        passed: dict[float, Tensor] = {}
        ends.append(_path(teacher, solver, knots, starts[-1], labels[at : at + len(rows)], passed))
        if missed := [level for level in through if level not in passed]:
            raise UsageError(f"{sampler} passes sigma = {missed[0]:.3g} without stopping there.", hint="--sampler 'dpm(steps=12)'")
        states += [torch.stack([passed[level] for level in through], dim=1)] if through else []
        if at // batch % 20 == 0:
            report(f"teacher's paths: {rows.stop} of {count}")
    inner = torch.cat(states) if through else None
    return Pool(torch.cat(ends), labels, torch.cat(starts), torch.full((count,), place), inner)


@torch.no_grad()
def again(
    teacher: Teacher, pool: Pool, sigmas: Tensor, *, sampler: str, seed: int = 0, report: Callable[[str], None] = lambda line: None
) -> Pool:
    """Paths of the teacher from the ends of `pool`, noised to the inner knots in turn, a batch a knot.

    Args:
        pool: of the teacher's samples.
        sigmas: noise levels of the student's knots, rising; the first, where nothing is left to do, and the last, pure noise, are left out.
        sampler: as `sampled`.
        seed: of the fresh noise.
    """
    solver = solver_of(sampler)
    steps = len(solver.knots(None, teacher.noise)) - 1
    knots = replace(solver, steps=2 * steps).knots(None, teacher.noise)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(pool), generator=generator)
    starts, ends, places = [], [], []
    inner = len(sigmas) - 2
    batch = max(1, min(_BATCH, _NUMBERS // math.prod(teacher.shape)))
    for turn, rows in enumerate(order.split(min(batch, -(-len(pool) // inner)))):  # every knot gets its share of a small pool too
        place = 1 + turn % inner
        sigma = float(sigmas[place])
        x = pool.ends[rows] + sigma * torch.randn(len(rows), *teacher.shape, generator=generator)
        starts.append(x)
        ends.append(_path(teacher, solver, (sigma, *(s for s in knots if s < _APART * sigma)), x, pool.labels[rows]))
        places.append(torch.full((len(rows),), place))
        if turn % 20 == 0:
            report(f"teacher's paths from lower knots: {(turn + 1) * len(rows)} of {len(pool)}")
    return Pool(torch.cat(ends), pool.labels[order], torch.cat(starts), torch.cat(places))


def solver_of(sampler: str) -> Solver:
    """The solver that a recipe's text names.

    Raises:
        UsageError: a recipe that is no solver with a schedule by name.
    """
    methods = Recipe.parse(sampler).methods
    solver = methods[0] if len(methods) == 1 else None
    if not isinstance(solver, Solver) or isinstance(solver.schedule, tuple):
        raise UsageError(f"The teacher's paths are made by one sampler with its steps; got {sampler}.", hint="--sampler 'dpm(steps=12)'")
    return solver


def _path(
    teacher: Teacher, solver: Solver, knots: tuple[float, ...], x: Tensor, labels: Tensor, passed: dict[float, Tensor] | None = None
) -> Tensor:
    """The ends of paths that begin at x (data scale 1, noise level knots[0]); `passed` receives the last state at each level asked."""
    device = next(teacher.network.parameters()).device
    labels = labels.to(device)

    def denoise(x: Tensor, sigma: float) -> Tensor:
        if passed is not None:
            passed[sigma] = x.to("cpu", torch.float16)
        rows = torch.full((len(x),), sigma, device=x.device)
        times = torch.full((len(x),), teacher.noise.time_at(sigma), device=x.device)
        return teacher.guided(x, rows, times, labels)

    with torch.autocast(device.type, torch.bfloat16):
        return sample(denoise, solver, x.to(device), knots).cpu()


def kept(path: Path, facts: dict[str, Any], make: Callable[[], Pool]) -> Pool:
    """The paths in the file `path`, if they were made by these `facts`; else new ones, written there."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    wanted = json.dumps(facts, sort_keys=True)
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("facts") == wanted:
                    return Pool(**{name: file.get_tensor(name) for name in file.keys()})
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is no file of paths: {error}", hint="delete it: it is made again") from error
    pool = make()
    write_atomic(path, save(pool.columns(), {"facts": wanted}))
    return pool


@torch.no_grad()
def of_images(teacher: Teacher, folder: Path) -> Pool:
    """The training images of a folder of CIFAR-10's layout, and their mirror images.

    Raises:
        DataError: another layout, or images of another size than the teacher's.
    """
    from vis_accel.zoo.cifar10 import load_split
    from vis_accel.zoo.train_autoencoder import encode, to_network

    images = load_split(folder, "train")
    both = torch.cat([images.pixels, images.pixels.flip(-1)])
    ends = encode(teacher.pipeline.vae, both) if teacher.latent else to_network(both)
    if ends.shape[1:] != torch.Size(teacher.shape):
        raise DataError(f"{folder} gives samples of {tuple(ends.shape[1:])}; the teacher's are {teacher.shape}.")
    labels = torch.cat([images.labels, images.labels]) if teacher.classes else torch.zeros(len(both), dtype=torch.int64)
    return Pool(ends, labels)
