"""Images of a bundled model, made once and kept: scoring them again, by another network or another measure, costs seconds.

Image i of a model is the same wherever it is made, so several processes may fill different ranges at once, and a killed one goes on where
it was. They are kept below runs/images, by model hash, sampler and job.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel.contenders import Contender, Stage
from vis_accel.files import write_atomic
from vis_accel.generation import Job, generate
from vis_accel.recipe import Recipe
from vis_accel.zoo import describe, load

__all__ = ["CACHE", "Gallery"]

CACHE = Path("runs/images")
_CHUNK, _BATCH = 250, 50  # images a file, images a call


class Gallery:
    """The images of one bundled model under its stock samplers and some recipes.

    Args:
        model: name of the bundled model; its card says what is generated.
        recipes: beside the stock rows.
        job: None: the card's.
        cache: where images are kept.
    """

    def __init__(self, model: str, recipes: tuple[str, ...] = (), job: Job | None = None, cache: Path = CACHE) -> None:
        card = describe(model)
        pipeline: Any = load(model)
        pipeline.set_progress_bar_config(disable=True)
        self.stage = Stage(pipeline, [Recipe.parse(text) for text in recipes], job or Job(**card.job))
        self.place = cache / f"{model}-{card.sha256[:12]}"

    def images(self, contender: Contender, stop: int, start: int = 0) -> Tensor:
        """Images start .. stop - 1 (uint8, n x 3 x H x W), made if they are not there."""
        first = start // _CHUNK * _CHUNK
        parts = [self._chunk(contender, at) for at in range(first, stop, _CHUNK)]
        return torch.cat(parts)[start - first : stop - first]

    def _chunk(self, contender: Contender, start: int) -> Tensor:
        from safetensors.torch import load_file, save

        job = json.dumps([contender.label, str(contender.recipe), asdict(contender.job)])
        path = self.place / f"{hashlib.sha256(job.encode()).hexdigest()[:12]}-{start:06d}.safetensors"
        if path.exists():
            return load_file(path)["images"]
        self.stage.enter(contender)
        began = time.perf_counter()
        batches = torch.arange(start, start + _CHUNK).split(_BATCH)
        images = torch.cat([generate(self.stage.pipeline, contender.job, batch.tolist()) for batch in batches])
        self.stage.clear()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, save({"images": images}, {"contender": job}))
        print(f"{contender.label}: {start} .. {start + _CHUNK - 1} in {time.perf_counter() - began:.0f} s", flush=True)
        return images
