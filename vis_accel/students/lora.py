"""Adapters on a student's network through peft: which layers get them, the network with them in its weights, and the folder of them.

LoRA     W + B A with B zero at the start (Hu et al. 2021, arXiv:2106.09685, eq. 3); alpha = r, which diffusers takes where a file has none.
Layers   linear ones and convolutions of one group, of these very classes: peft puts adapters on more than that (embeddings), and on
         subclasses, whose forward may be another. By default those inside the blocks that a transformer or U-Net of diffusers repeats.
Kept     of a UNet2DConditionModel as diffusers keeps it, for `pipe.load_lora_weights(folder)`. For DiTTransformer2DModel and UNet2DModel
         diffusers has no loader (0.42: they are no PeftAdapterMixin, nor are their pipelines a LoraBaseMixin); theirs is peft's own folder,
         for `peft.PeftModel.from_pretrained(pipe.transformer, folder)`. Float32, so that what is loaded has the same bits.
Cost     memory of the optimiser falls with the rank; time does not, as the forward and most of the backward remain.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vis_accel.errors import MissingDependencyError, NotApplicableError, UsageError, shown
from vis_accel.files import write_atomic

__all__ = ["adapted", "merged", "save_adapter", "target_names"]

_BLOCKS = re.compile(r"(transformer_blocks|down_blocks|mid_block|up_blocks)\..+")
_PREFIX = "unet"  # of the tensors in diffusers' file


def target_names(network: nn.Module, pattern: str | None, rank: int) -> list[str]:
    """The layers that get adapters.

    Args:
        network: a denoiser of diffusers.
        pattern: regular expression that a whole name must match; None: every layer of the blocks that can have them.
        rank: of the adapters.

    Raises:
        MissingDependencyError: without peft.
        UsageError: a pattern that is none, or matches no layer, or one that no adapter fits on; a rank above that of a layer.
        NotApplicableError: a network without blocks of such layers.
    """
    _peft()
    try:
        compiled = _BLOCKS if pattern is None else re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--targets {shown(pattern)} is no regular expression: {error}") from error
    matched = {name: module for name, module in network.named_modules() if compiled.fullmatch(name)}
    fitting = {name: module for name, module in matched.items() if _fits(module)}
    if pattern is None and not fitting:
        known = "transformer_blocks, down_blocks, mid_block or up_blocks"
        raise NotApplicableError(f"{type(network).__name__} has no {known} with layers for adapters.", hint="--targets EXPRESSION")
    if not matched:
        some = [name for name, module in network.named_modules() if _fits(module)][:4]
        raise UsageError(f"--targets {shown(pattern)} matches no layer.", hint=f"layers are {', '.join(some) or 'none'} ...")
    if pattern is not None and (foreign := [f"{name} ({type(matched[name]).__name__})" for name in matched if name not in fitting]):
        listed = ", ".join(foreign[:3])
        raise UsageError(f"--targets {shown(pattern)} matches {listed}; adapters go on linear layers and convolutions of one group.")
    smallest = min(fitting, key=lambda name: _full(fitting[name]))
    if rank > (full := _full(fitting[smallest])):
        raise UsageError(f"--rank {rank} is above the rank of {smallest}, which is {full}.", hint=f"--rank {max(1, full // 4)}")
    return list(fitting)


def adapted(network: nn.Module, targets: Sequence[str], *, rank: int, seed: int) -> Any:
    """Puts adapters on the layers `targets` of `network` in place, freezes all the rest, and returns peft's holder of it."""
    peft = _peft()
    pattern = "|".join(re.escape(name) for name in targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return peft.get_peft_model(network, peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=pattern))


def merged(holder: Any) -> nn.Module:
    """A copy of the network with the adapters added to its weights."""
    network: nn.Module = copy.deepcopy(holder).merge_and_unload(safe_merge=True).eval()
    return network


def save_adapter(holder: Any, folder: Path, pipeline: Any) -> None:
    """Writes the adapters below `folder` in the form that a loader of `pipeline`, the teacher's, reads."""
    from safetensors.torch import save

    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in _peft().get_peft_model_state_dict(holder).items()}
    config = holder.peft_config["default"].to_dict()
    config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    config |= {"base_model_name_or_path": None, "inference_mode": True}
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(pipeline, "load_lora_weights"):
        from diffusers.loaders.lora_base import LORA_WEIGHT_NAME_SAFE

        own = {f"{_PREFIX}.{name.removeprefix('base_model.model.')}": tensor for name, tensor in tensors.items()}
        write_atomic(folder / LORA_WEIGHT_NAME_SAFE, save(own, {"format": "pt"}))
        return
    write_atomic(folder / "adapter_model.safetensors", save(tensors, {"format": "pt"}))
    write_atomic(folder / "adapter_config.json", json.dumps(config, indent=1, sort_keys=True) + "\n")


def _fits(module: nn.Module) -> bool:
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.groups == 1)


def _full(module: Any) -> int:
    return min(len(module.weight), int(module.weight[0].numel()))


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise MissingDependencyError("lcm-lora needs peft, which is not installed.", hint="pip install 'vis-accel[peft]'") from error
    return peft
