"""A denoiser's layers rounded with ranges of the very run they will serve: what the methods of this kind share.

Calibration  a run of the recipe itself, sampler, guidance and cache included, since precision is applied after them.
by-step      one scale and zero point for each call of the run instead of one for all (So et al. 2023, arXiv:2306.02316, tabulated): nothing
             is added to a call, since the integer kernels take their scale as an argument.
Split        where a U-Net concatenates a skip connection, the shortcut convolution sees two distributions side by side, so its input
             channels and weights are rounded in two groups (Li et al. 2023, arXiv:2302.04304, sec. 3.3, eq. 6-8).
Float        layers of a row or two an image; where integers are real, also the first layer, the last, and what suits no kernel.
Real         8-bit weights and activations run on integer kernels. Anything else is rounded in float and says so: it has no speed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vis_accel.errors import ConflictError, NoEffectError, NotApplicableError, UsageError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.networks import networks_of
from vis_accel.precision import kernels
from vis_accel.precision.blocks import Example, recorded
from vis_accel.precision.layers import Layer, candidates, part_of, reason_against
from vis_accel.precision.observe import Seen, observed
from vis_accel.precision.rounded import RoundedLayer, RoundedPart
from vis_accel.precision.rounding import Range, best_scales, channel_scales
from vis_accel.precision.saved import FILE, Saved, install, keep, kept, of_networks, read

__all__ = ["RoundedRun", "Watch", "concatenations"]

EDGE_BITS = 8  # of the first and the last layer


class Watch(NamedTuple):
    """What a calibration run keeps besides ranges.

    Attributes:
        blocks: modules of which `rows` of each call are recorded, input and answer, and the layers inside each.
        rows: how many; None: all.
        inputs: of a layer that is in no block, how many inputs of each call are kept whole.
    """

    blocks: dict[nn.Module, list[nn.Module]]
    rows: int | None = None
    inputs: int = 0


@dataclass(frozen=True, kw_only=True)
class RoundedRun(Method):
    """Base of the methods that round a denoiser by a calibration over its run."""

    family: ClassVar[Family] = "precision"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("matrix products", "replaces"),)

    weights: Literal[8, 6, 4] = option(8, "the bits of a weight")
    activations: Literal[8, 6, 4] = option(8, "the bits of an activation")
    ranges: Literal["by-step", "static"] = option("by-step", "whether each call of a run has ranges of its own")
    split: bool = option(True, "whether the two halves of a concatenation are rounded apart")
    images: int = option(32, "the number of images of the calibration run", low=1)
    saved: str | None = option(None, "a folder of vis-accel quantize, in place of a calibration")
    fresh: bool = option(False, "whether a calibration that was kept is made anew")

    @property
    def simulated(self) -> bool:
        """Whether the rounding happens in float arithmetic: then its speed means nothing."""
        return (self.weights, self.activations) != (8, 8)

    @abstractmethod
    def watched(self, network: nn.Module, layers: list[Layer]) -> Watch:
        """What `adjust` and `whole_weight` will need of the calibration run."""

    @abstractmethod
    def whole_weight(self, twin: nn.Linear | nn.Conv2d, scales: Tensor, bits: int, seen: Seen, ranges: list[Range]) -> Tensor:
        """The first rounding of a layer's weight, or a group's of its input channels: int8, the weight's shape."""

    @abstractmethod
    def adjust(
        self,
        network: nn.Module,
        rounded: dict[nn.Module, RoundedLayer],
        examples: dict[nn.Module, list[Example]],
        step: Tensor,
        progress: Callable[[str, int, int], None],
    ) -> None:
        """Improves the rounding of layers that are in place, by what the calibration run recorded.

        Args:
            network: whose layers they are.
            rounded: the layers.
            examples: of each block that was watched.
            step: int64 [1], to be set to the call that an example is of.
            progress: told how far it is.
        """

    def check_target(self, view: Any) -> None:
        if not hasattr(view, "install_scheduler"):
            raise NotApplicableError(f"{self.name} is for the denoisers of diffusion pipelines.", hint="int8")
        network = networks_of(self, view, vae=False)[0]
        if any(hasattr(vars(module).get("forward"), "bits") for module in network.modules()):
            raise ConflictError(f"{self.name}: this network is quantized already.", hint="remove the other recipe first")
        problem = None if self.simulated else kernels.supported()
        if problem or (not self.simulated and next(network.parameters()).device.type != "cpu"):
            reason = problem or "the integer kernels are for the CPU"
            raise NotApplicableError(f"{self} cannot run here: {reason}.", hint="bf16, or fewer bits, simulated")

    def apply(self, target: Any, context: Context) -> Handle:
        """Runs the recipe once for the ranges, rounds the weights, and puts rounded layers in the place of the float ones."""
        network = context.view.denoiser
        step = torch.zeros(1, dtype=torch.int64)  # the index of the call that is under way; part of every by-step forward
        if (stored := self._stored(context, network)) is not None:
            return self._restored(target, context, stored, step)
        joints = concatenations(network) if self.split else {}
        seen, examples = self._calibrated(target, list(candidates(network)), context, joints)
        chosen, edges = self._chosen(seen, network)
        with Handle.building(target, str(self)) as handle:
            rounded: dict[nn.Module, RoundedLayer] = {}
            for layer in chosen:
                bits = (EDGE_BITS, EDGE_BITS) if layer in edges else (self.weights, self.activations)
                rounded[layer.module] = self._rounded(handle, layer, seen[layer], bits, joints.get(layer.module), step)
                handle.swap_forward(layer.module, rounded[layer.module])
                seen[layer].forget_inputs()
            if examples:
                self.adjust(network, rounded, examples, step, context.progress)
                step.zero_()
            self._follow(handle, network, context, step)
            kind = "simulated in float" if self.simulated else "in integers"
            split = sum(layer.module in joints for layer in chosen)
            told = f"{len(chosen)} layers {kind}, {split} of them split; ranges {self.ranges}"
            keep(of_networks(self, context.recipe, [network], real=not self.simulated, told=told), self, context, [network])
            handle.reports(lambda: {self.name: told})
        return handle

    def _chosen(self, seen: dict[Layer, Seen], network: nn.Module) -> tuple[list[Layer], set[Layer]]:
        """The layers that are rounded, and which of all are the first and the last."""
        wide = [layer for layer in seen if not layer.few_rows]
        edges = {wide[0], wide[-1]} if wide else set[Layer]()
        chosen = [layer for layer in wide if self.simulated or (layer not in edges and reason_against(layer) is None)]
        if not chosen:
            raise NoEffectError(f"{self.name} found no layer it could take in {type(network).__name__}.")
        return chosen, edges

    def _stored(self, context: Context, network: nn.Module) -> Saved | None:
        """The layers of the folder that was named, or of an earlier calibration of the same."""
        if self.saved is not None:
            return read(Path(self.saved).expanduser() / FILE)
        return None if self.fresh else kept(self, context, [network])

    def _restored(self, target: Any, context: Context, stored: Saved, step: Tensor) -> Handle:
        network = context.view.denoiser
        with Handle.building(target, str(self)) as handle:
            install(handle, stored, [network], step, real=not self.simulated)
            self._follow(handle, network, context, step)
            handle.reports(lambda: {self.name: f"{stored.facts.told}; calibration: read from {stored.name}"})
        return handle

    def _calibrated(
        self, target: Any, layers: list[Layer], context: Context, joints: dict[nn.Module, int]
    ) -> tuple[dict[Layer, Seen], dict[nn.Module, list[Example]]]:
        if context.exercise is None:
            raise UsageError(f"{self.name} takes its ranges from a run of the target; apply it by accelerate().")
        watch = self.watched(context.view.denoiser, layers)
        covered = {module for inside in watch.blocks.values() for module in inside}
        whole = {layer: 0 if layer.module in covered else watch.inputs for layer in layers}
        with Handle.building(target, "calibration") as watching:
            context.run.watch(watching)

            def moment() -> int:
                index: int = context.run.now().index
                return index

            with observed(layers, moment, keep=whole, joints=joints) as seen, recorded(watch.blocks, moment, watch.rows) as examples:
                context.exercise(self.images)
        watching.remove()
        return seen, examples

    def _rounded(self, handle: Handle, layer: Layer, seen: Seen, bits: tuple[int, int], joint: int | None, step: Tensor) -> RoundedLayer:
        """One layer; with a joint, of two parts on the two groups of its input channels."""
        module = layer.module
        starts = [0, module.weight.shape[1]] if joint is None else [0, joint, module.weight.shape[1]]
        views = [seen] if joint is None else list(seen.halves)
        twins = [module] if joint is None else [part_of(module, *group) for group in pairwise(starts)]
        return RoundedLayer([self._part(handle, twin, one, bits, step) for twin, one in zip(twins, views, strict=True)], starts, bits)

    def _part(self, handle: Handle, twin: nn.Linear | nn.Conv2d, seen: Seen, bits: tuple[int, int], step: Tensor) -> RoundedPart:
        """A layer with one group of input channels."""
        clip = bits[1] < 8  # with 256 levels what is gained in the middle is less than the rare large values lose
        ranges = [seen.range(bits[1], clip, at) for at in sorted(seen.low)] if self.ranges == "by-step" else [seen.range(bits[1], clip)]
        scales = best_scales(twin.weight, bits[0]) if bits[0] < 8 else channel_scales(twin.weight, bits[0])
        whole = self.whole_weight(twin, scales, bits[0], seen, ranges)
        packed = None if self.simulated else kernels.pack(twin, whole, scales)
        if packed is not None:
            handle.at_end(packed.free)
        return RoundedPart.of(twin, whole, scales, ranges, step, packed)

    def _follow(self, handle: Handle, network: nn.Module, context: Context, step: Tensor) -> None:
        """Before each call of the network, tells its layers which call of the run it is, where their ranges depend on it."""
        layers = [layer for module in network.modules() if isinstance(layer := vars(module).get("forward"), RoundedLayer)]
        calls = max(len(part.scale_of) for layer in layers for part in layer.parts)
        if calls == 1:
            return
        context.run.watch(handle)

        def turn(module: nn.Module, args: Any) -> None:
            moment = context.run.now()
            if moment.calls != calls:
                raise UsageError(
                    f"{self.name} was calibrated for runs of {calls} calls; this one has {moment.calls}.",
                    hint=f"name the steps in the recipe, or {self.name}(ranges='static')",
                )
            step.fill_(moment.index)

        handle.add_hook(lambda: network.register_forward_pre_hook(turn, prepend=True))


def concatenations(network: nn.Module) -> dict[nn.Module, int]:
    """Shortcut convolutions that see a skip connection beside the stream: convolution -> channels of the stream, which come first.

    Those of diffusers' U-Nets, whose up blocks concatenate before each of their residual blocks.
    """
    found: dict[nn.Module, int] = {}
    width = getattr(next(reversed(getattr(getattr(network, "mid_block", None), "resnets", None) or [None]), None), "out_channels", None)
    for block in getattr(network, "up_blocks", ()):
        for resnet in getattr(block, "resnets", ()):
            shortcut = getattr(resnet, "conv_shortcut", None)
            if isinstance(shortcut, nn.Conv2d) and width is not None and width < shortcut.in_channels:
                found[shortcut] = int(width)
            width = resnet.out_channels
    return found
