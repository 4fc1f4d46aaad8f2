"""Add-ons with random parameters for tiny models, strong enough that images differ in what they keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from vis_accel import addons
from vis_accel.token_pruning.decisions import Decider
from vis_accel.token_pruning.predictor import SELECTORS


def loud(modules: nn.ModuleList, seed: int = 11, scale: float = 1.0) -> nn.ModuleList:
    """The same modules with large random weights: answers far from the middle."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in modules.parameters():
            size = scale if parameter.ndim < 2 else 2 * scale / parameter.shape[-1] ** 0.5
            parameter.copy_((torch.randn(parameter.shape, generator=generator) * size).to(torch.bfloat16))
    return modules.eval()


def selectors(method: str, model: Any, stages: tuple[int, ...]) -> nn.ModuleList:
    return loud(nn.ModuleList(SELECTORS[method](model.embed_dim, 2) for _ in stages))


def selector_file(folder: Path, method: str, model: Any, stages: tuple[int, ...]) -> str:
    tensors = {f"selectors.{name}": value for name, value in selectors(method, model, stages).state_dict().items()}
    path = folder / f"{method}.safetensors"
    addons.save(path, tensors, method=method, model=model, facts={"stages": list(stages)})
    return str(path)


def deciders(model: Any, seed: int = 11) -> nn.ModuleList:
    return loud(nn.ModuleList(Decider(model.embed_dim, 2) for _ in model.blocks[1:]), seed)


def decider_file(folder: Path, model: Any, seed: int = 11) -> str:
    tensors = {f"deciders.{name}": value for name, value in deciders(model, seed).state_dict().items()}
    path = folder / "adavit.safetensors"
    addons.save(path, tensors, method="adavit", model=model, facts={})
    return str(path)


def halting_file(folder: Path, model: Any, gamma: float, beta: float) -> str:
    path = folder / "avit.safetensors"
    addons.save(path, {"norm.weight": model.norm.weight}, method="avit", model=model, facts={"gamma": gamma, "beta": beta})
    return str(path)
