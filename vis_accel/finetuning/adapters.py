"""Adapters through peft: low-rank corrections of linear layers, trained in place of the layers and added to them at the end.

LoRA     W + (alpha / r) B A, B zero at the start (Hu et al. 2021, arXiv:2106.09685, eq. 3).
DoRA     the direction of W + B A, times a trained length for each output (Liu et al. 2024, arXiv:2402.09353, eq. 5).
PiSSA    A and B are the leading singular vectors of W, and what is left of W is frozen (Meng et al. 2024, arXiv:2404.02948, eq. 2 to 4).
LoRA+    B learns faster than A (Hayou et al. 2024, arXiv:2402.12354): see scales.py.

Cost     memory of the optimiser and of checkpoints falls; time does not on small networks, since the forward and most of the backward pass
         remain, and adapters add layers to both.
Departs  the head is unfrozen in place instead of through peft's `modules_to_save`, which goes by the end of a name ("fc" is also the end of
         names that are no head) and keeps a second copy: heads are up to 40% of an edge network's parameters.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.errors import MissingDependencyError, NotApplicableError, RunError, UsageError, shown

__all__ = ["adapted", "merged", "original_name", "target_names"]

_TOLERANCE = 1e-3  # largest difference of a logit that merging may make, over the largest logit: float32 through many layers


def target_names(network: nn.Module, pattern: str | None, heads: Sequence[str]) -> list[str]:
    """The layers that get adapters.

    Args:
        network: of timm.
        pattern: regular expression that a whole name must match; None: every linear layer that is not below a head's top-level module.
        heads: names of the modules that make logits.

    Raises:
        UsageError: a pattern that is none, or matches no linear layer, or something else as well.
        NotApplicableError: a network without linear layers outside its head.
    """
    if pattern is None:
        tops = {name.partition(".")[0] for name in heads}
        found = [name for name, module in network.named_modules() if type(module) is nn.Linear and name.partition(".")[0] not in tops]
        if not found:
            hint = "--mode full or --mode head"
            raise NotApplicableError(
                f"{type(network).__name__} has no linear layers outside its head: adapters have nothing to correct.", hint=hint
            )
        return found
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"--targets {shown(pattern)} is no regular expression: {error}") from error
    matched = {name: module for name, module in network.named_modules() if compiled.fullmatch(name)}
    if foreign := [f"{name} ({type(module).__name__})" for name, module in matched.items() if type(module) is not nn.Linear]:
        raise UsageError(f"--targets {shown(pattern)} matches {', '.join(foreign[:3])}; adapters go on linear layers.")
    if inside := [name for name in matched if any(name == head or name.startswith(f"{head}.") for head in heads)]:
        raise UsageError(f"--targets {shown(pattern)} matches {inside[0]}, which is part of the head: that is trained as it is.")
    if not matched:
        some = [name for name, module in network.named_modules() if type(module) is nn.Linear][:4]
        raise UsageError(f"--targets {shown(pattern)} matches no layer.", hint=f"linear layers are {', '.join(some) or 'none'} ...")
    return list(matched)


def adapted(
    network: nn.Module, mode: str, *, targets: Sequence[str], heads: Sequence[str], rank: int, alpha: float | None, seed: int
) -> Any:
    """Puts adapters on `network` in place, freezes everything but them and the heads, and returns peft's holder of it.

    Args:
        network: of timm.
        mode: "lora", "dora" or "pissa".
        targets: names of linear layers.
        heads: names of the modules that make logits.
        rank: r.
        alpha: adapters are added times alpha / r; None: 2 r, and r for pissa, whose start is part of W.
        seed: of the random start.

    Raises:
        MissingDependencyError: without peft.
        UsageError: a rank above that of a layer.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise MissingDependencyError("Adapters need peft, which is not installed.", hint="pip install 'vis-accel[peft]'") from error
    layers: dict[str, Any] = {name: network.get_submodule(name) for name in targets}
    smallest = min(layers, key=lambda name: min(layers[name].weight.shape))
    if rank > (full := min(layers[smallest].weight.shape)):
        raise UsageError(
            f"--rank {rank} is above the rank of {smallest}, which has {full} rows or columns.", hint=f"--rank {max(1, full // 4)}"
        )
    config = LoraConfig(
        r=rank, lora_alpha=alpha if alpha is not None else (rank if mode == "pissa" else 2 * rank), use_dora=mode == "dora",
        target_modules="|".join(re.escape(name) for name in targets), init_lora_weights="pissa_niter_4" if mode == "pissa" else True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        holder = get_peft_model(network, config)
    for name in heads:
        network.get_submodule(name).requires_grad_(True)
    return holder


@torch.no_grad()
def merged(holder: Any, images: Tensor) -> tuple[Any, float]:
    """A copy of the network with the adapters added to its layers, and how much that changes its logits.

    Args:
        holder: what `adapted` returned, or a copy.
        images: normalised, B x 3 x H x W, to compare on.

    Returns:
        The network in evaluation mode, and the largest difference of a logit over the largest logit.

    Raises:
        RunError: the difference is more than rounding.
    """
    before = holder.eval()(images)
    network = copy.deepcopy(holder).merge_and_unload(safe_merge=True).eval()
    difference = float((network(images) - before).abs().max() / before.abs().max().clamp(min=1e-6))
    if not difference <= _TOLERANCE:
        raise RunError(f"Merging the adapters changed the logits by {difference:.2g} of the largest; at most {_TOLERANCE:g} is rounding.")
    return network, difference


def original_name(name: str) -> str:
    """The name a parameter had before adapters were put on: that of the weight for the parameters of its adapter."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return re.sub(r"\.lora_(A|B|magnitude_vector)\.[^.]+", "", name)
