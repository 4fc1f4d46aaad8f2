"""What every cache must keep, whoever wrote it: tested the day it is registered, on networks that tests/caching/deeper.py says it fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caching.deeper import FITS, deeper, latents
from torch import nn
from vit_models.families import tiny

from vis_accel import ConflictError, registry
from vis_accel.apply import accelerate
from vis_accel.errors import NotApplicableError

NAMES = sorted(name for name, entry in registry.METHODS.items() if entry.family == "cache")


def test_every_cache_says_what_it_fits() -> None:
    assert sorted(FITS) == NAMES


def state(pipe: Any) -> list[Any]:
    """Names and identities of every attribute of the pipeline, its scheduler and its modules, and the sizes of their tables."""
    modules = [m for part in pipe.components.values() if isinstance(part, nn.Module) for m in part.modules()]
    return [
        (id(part), [(k, id(v)) for k, v in vars(part).items()], [len(v) for v in vars(part).values() if isinstance(v, dict)])
        for part in (pipe, pipe.scheduler, *modules)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_taken_off(name: str) -> None:
    for kind in (FITS[name][0], FITS[name][-1]):  # one for each way a block is called
        pipe = deeper(kind, torch.float32)
        plain = latents(pipe, images=(0,))  # stock schedulers make some attributes at the first run
        before = state(pipe)
        handle = accelerate(pipe, name)
        assert state(pipe) != before
        changed = latents(pipe, images=(0,))
        assert handle.report()["calls reused"] + handle.report()["calls in full"] >= 10
        handle.suspend()
        assert [part[2] for part in state(pipe)] == [part[2] for part in before]
        assert torch.equal(latents(pipe, images=(0,)), plain)
        handle.resume()
        assert torch.equal(latents(pipe, images=(0,)), changed)
        handle.remove()
        assert [[k for k, _ in part[1]] for part in state(pipe)] == [[k for k, _ in part[1]] for part in before]
        assert [part[2] for part in state(pipe)] == [part[2] for part in before]
        assert torch.equal(latents(pipe, images=(0,)), plain)


@pytest.mark.parametrize("name", NAMES)
def test_two_caches_exclude_each_other_and_classifiers_are_refused(name: str) -> None:
    other = next(one for one in NAMES if one != name)
    with pytest.raises(ConflictError, match="both replace"):
        accelerate(deeper(FITS[name][0]), f"{name} + {other}")
    with pytest.raises(NotApplicableError, match=name):
        accelerate(tiny("plain"), name)
