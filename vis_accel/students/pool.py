"""What a student's training noises: samples of the teacher itself, so that no data is needed, or images of a folder.

Samples  image i starts from noise of seed `seed + i`, gets class i modulo their number, and is taken to its end by a fast solver with the
         teacher's guidance. Start and end are both kept: the end is also what one step from that start should give.
Images   encoded once, mirror images too. Of CIFAR-10's layout (DIR/train/CLASS/*) the last 500 of each class are left out, which every
         bundled model keeps for calibration.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel.errors import DataError, UsageError
from vis_accel.files import write_atomic
from vis_accel.recipe import Recipe
from vis_accel.samplers import sample
from vis_accel.samplers.solver import Solver
from vis_accel.students.teacher import Teacher

__all__ = ["Pool", "kept", "of_images", "sampled"]

_BATCH = 128


@dataclass(frozen=True, eq=False)
class Pool:
    """Examples.

    Attributes:
        ends: images in the network's space (n x C x H x W).
        labels: their classes (n); 0 without.
        starts: unit noise of the paths that end there; None where there are no paths.
    """

    ends: Tensor
    labels: Tensor
    starts: Tensor | None = None

    def __len__(self) -> int:
        return len(self.ends)

    def split(self, count: int) -> tuple[Pool, Pool]:
        """All but the last `count`, and these."""
        at, starts = len(self) - count, self.starts
        first = Pool(self.ends[:at], self.labels[:at], None if starts is None else starts[:at])
        return first, Pool(self.ends[at:], self.labels[at:], None if starts is None else starts[at:])


@torch.no_grad()
def sampled(teacher: Teacher, count: int, *, sampler: str, seed: int = 0, report: Callable[[str], None] = lambda line: None) -> Pool:
    """Samples of the teacher.

    Args:
        count: how many.
        sampler: recipe of a deterministic solver with its steps: "ipndm(steps=8, schedule='karras', order=3)".
        seed: of the first start.

    Raises:
        UsageError: a recipe that is no solver with steps.
    """
    methods = Recipe.parse(sampler).methods
    solver = methods[0] if len(methods) == 1 else None
    if not isinstance(solver, Solver):
        raise UsageError(f"The teacher's paths are made by one sampler; got {sampler}.", hint="--sampler 'dpm(steps=12)'")
    knots = solver.knots(None, teacher.noise)
    labels = torch.arange(count) % max(1, teacher.classes)
    device = next(teacher.network.parameters()).device
    starts, ends = [], []
    for at in range(0, count, _BATCH):
        rows = range(at, min(at + _BATCH, count))
        noise = torch.stack([torch.randn(teacher.shape, generator=torch.Generator().manual_seed(seed + row)) for row in rows])
        starts.append(noise)
        ends.append(_path(teacher, solver, knots, noise.to(device), labels[at : at + len(rows)].to(device)).cpu())
        if at // _BATCH % 20 == 0:
            report(f"teacher's paths: {rows.stop} of {count}")
    return Pool(torch.cat(ends), labels, torch.cat(starts))


def _path(teacher: Teacher, solver: Solver, knots: tuple[float, ...], noise: Tensor, labels: Tensor) -> Tensor:
    def denoise(x: Tensor, sigma: float) -> Tensor:
        rows = torch.full((len(x),), sigma, device=x.device)
        times = torch.full((len(x),), teacher.noise.time_at(sigma), device=x.device)
        return teacher.guided(x, rows, times, labels)

    with torch.autocast(noise.device.type, torch.bfloat16):
        return sample(denoise, solver, noise / teacher.noise.alpha(knots[0]), knots)


def kept(path: Path, facts: dict[str, Any], make: Callable[[], Pool]) -> Pool:
    """The pool in the file `path`, if it was made by these `facts`; else a new one, written there."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    wanted = json.dumps(facts, sort_keys=True)
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                if (file.metadata() or {}).get("facts") == wanted:
                    return Pool(*(file.get_tensor(name) for name in ("ends", "labels", "starts")))
        except (SafetensorError, OSError) as error:
            raise DataError(f"{path} is no file of paths: {error}", hint="delete it: it is made again") from error
    pool = make()
    if pool.starts is None:
        return pool
    write_atomic(path, save({"ends": pool.ends, "labels": pool.labels, "starts": pool.starts}, {"facts": wanted}))
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
