"""DeepCache: the deep part of a U-Net changes slowly from call to call; most calls compute only its shallow part.

Paper    Ma et al. 2023, arXiv:2312.00858, section 3.2 and the non-uniform schedule of section 3.3.
Cut      the up path of a U-Net is a chain of n layers (a resnet, with its attention if there is one), each of which takes one skip; counted
         from the output, layer b takes skip b of the down path, and skip 0 is that of conv_in. A full call keeps the tensor that enters
         layer `branch`. A cheap call runs conv_in, the time embedding, the down layers that make skips 0 .. branch, and the up
         layers branch .. 0, which get fresh skips and the kept tensor.
Plan     full are the first call, then every `interval`-th, and the last two; or `full`, named; or `centre` and `power`, which set more of
         the same number of full calls around one time. Calls are counted by the run's clock, so a sampler that evaluates a time
         twice has both evaluations counted.
Cost     a cheap call costs the share r of a full one that the shallow layers have: the gain is at most interval / (1 + (interval - 1) r).
         In small U-Nets the shallow layers dominate and r is large. Memory: one feature map.
How      the blocks' own forwards stay, and the U-Net's own loop hands out the skips: deep blocks and layers answer with placeholders of
         one number, and the last one before the cut with the kept tensor.
Differs  the paper's schedule has no full calls at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vis_accel.caching.calls import Past
from vis_accel.caching.gate import Gate
from vis_accel.caching.planned import Planned
from vis_accel.caching.schedule import centred
from vis_accel.clock import Moment
from vis_accel.errors import NotApplicableError
from vis_accel.handle import Handle
from vis_accel.method import option

__all__ = ["Deepcache"]

DOWN = {"AttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D", "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"}
UP = {"AttnUpBlock2D", "CrossAttnUpBlock2D", "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D", "UpBlock2D"}


@dataclass(frozen=True, kw_only=True)
class Deepcache(Planned):
    """Deep features of a U-Net, reused.

    Attributes:
        branch: at which layer of the up path, counted from the output, the reused part ends: more is slower and nearer.
        centre: around which share of the run the full calls lie densest; None: every `interval`-th.
        power: how much denser; 1 is even.
    """

    name: ClassVar[str] = "deepcache"
    known: ClassVar[tuple[str, ...]] = ("UNet2DModel", "UNet2DConditionModel")
    others: ClassVar[str] = "taylor, firstblock"

    branch: int = option(1, "the layer of the up path, counted from the output, that gets the reused feature", low=0)
    centre: float | None = option(None, "the share of the run around which full calls are densest", low=0, high=1)
    power: float = option(1.5, "how much denser they are there", low=1, high=10)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.centre is not None and self.full is not None:
            raise self.refused("centre", "must be left out where the full calls are named")

    def check_target(self, view: Any) -> None:
        super().check_target(view)
        network = view.denoiser
        strange = {type(block).__name__ for block in (*network.down_blocks, *network.up_blocks)} - DOWN - UP
        if strange:
            raise NotApplicableError(f"{self.name} does not know the U-Net block {', '.join(sorted(strange))}.")
        layers = sum(len(block.resnets) for block in network.up_blocks) - (network.mid_block is None)
        if self.branch >= layers:
            raise NotApplicableError(
                f"{self}: the up path of this {type(network).__name__} has {layers} layers to cut at, 0 .. {layers - 1}; got {self.branch}."
            )

    def chosen(self, moment: Moment) -> tuple[int, ...] | None:
        if self.centre is None:
            return self.full
        return centred(moment.calls, self.interval, self.centre, self.power)

    def serve(self, moment: Moment, past: Past) -> Sequence[Any] | None:
        return None if self.due(moment, past) else past.nodes[-1].made

    def install(self, handle: Handle, network: Any, gate: Gate) -> None:
        _cut_down(handle, network.down_blocks, gate, self.branch)
        *idle, last = [*([] if network.mid_block is None else [network.mid_block]), *_before(network.up_blocks, self.branch)]
        gate.add_source(handle, last)
        for module in idle:
            gate.add_idle(handle, module, _placeholder)


def _before(blocks: Sequence[Any], branch: int) -> list[Any]:
    """The modules of the up path before layer `branch`, in the order they run: whole blocks, then layers of the block that is cut."""
    found: list[Any] = []
    left = sum(len(block.resnets) for block in blocks) - branch - 1  # layers to leave out
    for block in blocks:
        if left >= len(block.resnets):
            found.append(block)
            left -= len(block.resnets)
        elif left:
            found += [module for i in range(left) for module in _layer(block, i)]
            left = 0
    return found


def _cut_down(handle: Handle, blocks: Sequence[Any], gate: Gate, branch: int) -> None:
    """Lets the modules of the down path that make skips above `branch` stand idle; skip 0 is conv_in's."""
    made = 0
    for block in blocks:
        samplers = [*(block.downsamplers or ())]
        skips = len(block.resnets) + bool(samplers)
        if made >= branch:
            gate.add_idle(handle, block, lambda *args, _skips=skips, **kwargs: (_one(args, kwargs), (_one(args, kwargs),) * _skips))
        else:
            layers = [_layer(block, i) for i in range(len(block.resnets))] + ([samplers] if samplers else [])
            for module in (module for layer in layers[branch - made :] for module in layer):
                gate.add_idle(handle, module, _placeholder)
        made += skips


def _layer(block: Any, index: int) -> list[Any]:
    """A resnet and the attention behind it."""
    attentions = getattr(block, "attentions", None)
    return [block.resnets[index], *([] if attentions is None or attentions[index] is None else [attentions[index]])]


def _one(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """A placeholder [1, 1, 1, 1]: it is concatenated and handed on, and enters nothing."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden.new_zeros(1, 1, 1, 1)


def _placeholder(*args: Any, **kwargs: Any) -> Any:
    one = _one(args, kwargs)
    return (one,) if kwargs.get("return_dict") is False else one  # as a text-attending layer is asked
