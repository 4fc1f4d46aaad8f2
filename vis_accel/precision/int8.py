"""Int8: Linear and Conv2d in 8-bit whole numbers, weights and activations (W8A8), on integer kernels that are really faster.

Paper    Jacob et al. 2018, arXiv:1712.05877, sec. 2: x ~ s (q - z). Weights symmetric, a scale for each output channel; activations
         unsigned with one scale and zero point. Ranges cover all that was seen, or (clip) less: see rounding.py.
static   scales from a calibration run of this very recipe: for a pipeline a few images of its own, for a network the images given.
dynamic  Linear: a scale for each row of each call; Conv2d: one a call. No calibration, one more pass over the activations.
Kernels  oneDNN's for uint8 x int8; in a graph traced for another runtime (OpenVINO, ONNX) the same numbers as FakeQuantize, from which
         that runtime makes its own integer kernels. On CUDA, Linear alone, dynamic, by torch._int_mm.
Float    a layer stays as it is if it is the first or the last, if its shape does not suit the kernels, or if a probe on this machine shows
         no gain (`probe`). What surrounds the layers (norms, softmax, attention's products, residual sums) is never rounded.
Cost     the weights a second time in a quarter of their size, unless keep_original=False frees the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vis_accel.errors import ConflictError, NoEffectError, NotApplicableError, UsageError
from vis_accel.handle import Handle
from vis_accel.method import Context, Exactness, Family, Method, Touch, option
from vis_accel.networks import networks_of
from vis_accel.precision import kernels
from vis_accel.precision.layers import Layer, candidates, leaves_python, produced, reason_against
from vis_accel.precision.observe import Seen, observed
from vis_accel.precision.probe import slower
from vis_accel.precision.rounded import RoundedLayer, RoundedPart
from vis_accel.precision.rounding import Range, best_scales, channel_scales, levels, round_activation, round_weight
from vis_accel.precision.saved import FILE, Saved, install, keep, kept, of_networks, read

__all__ = ["Int8"]


@dataclass(frozen=True, kw_only=True)
class Int8(Method):
    """8-bit weights and activations in the denoiser of a pipeline, or in a vision model.

    Attributes:
        activations: where their scales come from.
        clip: whether ranges are shrunk to what loses least; else they cover all that was seen.
        vae: whether a pipeline's decoder is rounded too.
        images: generated for the calibration of a pipeline.
        probe: whether each layer is timed in both forms, and kept in float where integers are no faster.
        saved: a folder of `vis-accel quantize`, in place of a calibration.
        fresh: whether layers are calibrated anew even where that was done before; else they are read from the user's folder.
        keep_original: False frees the float weights; the method can then not be removed.
    """

    name: ClassVar[str] = "int8"
    family: ClassVar[Family] = "precision"
    exactness: ClassVar[Exactness] = "approximate"
    touches: ClassVar[tuple[Touch, ...]] = (Touch("matrix products", "replaces"),)

    activations: Literal["static", "dynamic"] = option("static", "where the scales of activations come from")
    clip: bool = option(False, "whether ranges are shrunk to what loses least")
    vae: bool = option(True, "whether a pipeline's decoder is among what is rounded")
    images: int = option(32, "the number of images a pipeline is calibrated on", low=1)
    probe: bool = option(True, "whether layers that integers do not speed up stay in float")
    saved: str | None = option(None, "a folder of vis-accel quantize, in place of a calibration")
    fresh: bool = option(False, "whether a calibration that was kept is made anew")
    keep_original: bool = option(True, "whether the float weights are kept, so that the method can be removed")

    def check_target(self, view: Any) -> None:
        networks = networks_of(self, view, vae=self.vae)
        if any(hasattr(vars(module).get("forward"), "bits") for network in networks for module in network.modules()):
            raise ConflictError(f"{self.name}: this network is quantized already.", hint="remove the other recipe first")
        device = next(networks[0].parameters()).device.type
        problem = kernels.supported() if device == "cpu" else None if device == "cuda" else f"there are no integer kernels on {device}"
        if problem is None and device == "cuda" and self.activations == "static":
            problem = "on CUDA the integer kernels scale each row of activations"
        if problem:
            raise NotApplicableError(
                f"{self.name} cannot run here: {problem}.",
                hint="int8(activations='dynamic')" if device == "cuda" else "bf16, or compile",
            )

    def apply(self, target: Any, context: Context) -> Handle:
        """Calibrates, packs the weights, and puts integer layers in the place of the float ones."""
        networks, left = networks_of(self, context.view, vae=self.vae), dict[Layer, str]()
        if self.activations == "static" and (stored := self._stored(context, networks)) is not None:
            return self._restored(target, networks, stored)
        found = [list(candidates(network)) for network in networks]
        seen = self._calibrated(target, found, context) if self.activations == "static" else {}
        if seen:
            left |= {layer: "never called" for layers in found for layer in layers if layer not in seen}
            found = [[layer for layer in seen if layer in layers] for layers in found]  # in the order of the run
        chosen = [layer for layers in found for layer in self._chosen(layers, left)]
        if not chosen:
            kind, reasons = type(networks[0]).__name__, "; ".join(f"{count} {why}" for why, count in Counter(left.values()).items())
            raise NoEffectError(f"{self.name} found no layer it could take in {kind}: {reasons or 'it has none'}.")
        with Handle.building(target, str(self), keep_original=self.keep_original) as handle:
            told = _summary(chosen, left)
            for layer in chosen:
                self._replace(handle, layer, seen.get(layer))
            if self.activations == "static":
                keep(of_networks(self, context.recipe, networks, real=True, told=told), self, context, networks)
            for layer in chosen:
                self._free(handle, layer.module)
            handle.reports(lambda: {self.name: told})
        return handle

    def _stored(self, context: Context, networks: list[nn.Module]) -> Saved | None:
        """The layers of the folder that was named, or of an earlier calibration of the same."""
        if self.saved is not None:
            return read(Path(self.saved).expanduser() / FILE)
        return None if self.fresh else kept(self, context, networks)

    def _restored(self, target: Any, networks: list[nn.Module], stored: Saved) -> Handle:
        with Handle.building(target, str(self), keep_original=self.keep_original) as handle:
            for module in install(handle, stored, networks, torch.zeros(1, dtype=torch.int64), real=True):
                self._free(handle, module)
            handle.reports(lambda: {self.name: f"{stored.facts.told}; calibration: read from {stored.name}"})
        return handle

    def _free(self, handle: Handle, module: Any) -> None:
        """Lets the float weight go, if that was asked for."""
        if not self.keep_original:
            empty = nn.Parameter(module.weight.new_empty(0), requires_grad=False)  # others ask a weight for its dtype and device
            handle.swap_item(module._parameters, "weight", empty)

    def _calibrated(self, target: Any, found: list[list[Layer]], context: Context) -> dict[Layer, Seen]:
        """What every layer was given in a run of the recipe, in the order of the first calls."""
        exercise = context.exercise
        if exercise is None:
            raise UsageError(f"{self.name} takes the scales of activations from a run of the target; apply it by accelerate().")
        with observed([layer for layers in found for layer in layers]) as seen:
            exercise(self.images)
        return seen

    def _chosen(self, layers: list[Layer], kept: dict[Layer, str]) -> list[Layer]:
        """The layers of one network that integers take, given in the order of a run; the others enter `kept` with the reason."""
        first = next((layer for layer in layers if not layer.few_rows), None)
        chosen = list[Layer]()
        for layer in layers:
            reason = "first layer" if layer is first else "last layer" if layer is layers[-1] else reason_against(layer)
            if reason is None and self.probe and layer.shape and slower(layer):
                reason = "no faster in integers here"
            if reason is None:
                chosen.append(layer)
            else:
                kept[layer] = reason
        return chosen

    def _replace(self, handle: Handle, layer: Layer, seen: Seen | None) -> None:
        module = layer.module
        scales = best_scales(module.weight) if self.clip else channel_scales(module.weight)
        if seen is not None:
            handle.swap_forward(module, _static(handle, module, scales, seen.range(8, self.clip)))
            return
        forward = _by_rows(module, scales) if isinstance(module, nn.Linear) else _by_calls(handle, module, scales)
        forward.bits = (8, 8)  # type: ignore[attr-defined]  # weights, activations: a layer is not rounded twice
        handle.swap_forward(module, forward)


def _static(handle: Handle, module: nn.Linear | nn.Conv2d, scales: Tensor, found: Range) -> RoundedLayer:
    """The layer with one scale for all its activations."""
    whole = round_weight(module.weight, scales)
    packed = kernels.pack(module, whole, scales)
    handle.at_end(packed.free)
    part = RoundedPart.of(module, whole, scales, [found], torch.zeros(1, dtype=torch.int64), packed)
    return RoundedLayer([part], [0, whole.shape[1]], (8, 8))


def _by_rows(module: nn.Linear, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """A Linear with a scale for each row of each call; activations symmetric, in -127 .. 127."""
    whole = round_weight(module.weight, scales)
    columns = whole.t()

    def forward(x: Tensor) -> Tensor:
        _refuse_tracing()
        rows = x.reshape(-1, x.shape[-1])
        scale = rows.float().abs().amax(1, keepdim=True).div(127).clamp_min(torch.finfo(torch.float32).tiny)
        sums = torch._int_mm(rows.float().div(scale).round_().to(torch.int8), columns)
        found = sums.float() * scale * scales
        found = found if module.bias is None else found + module.bias
        return found.to(produced(x)).reshape(*x.shape[:-1], -1)

    return forward


def _by_calls(handle: Handle, module: nn.Conv2d, scales: Tensor) -> Callable[[Tensor], Tensor]:
    """A Conv2d with one scale for all activations of a call."""
    whole = round_weight(module.weight, scales)
    packed = kernels.pack(module, whole, scales)
    handle.at_end(packed.free)

    def forward(x: Tensor) -> Tensor:
        _refuse_tracing()
        low, high = (end.float() for end in torch.aminmax(x))
        low, high = low.clamp_max(0), high.clamp_min(0)
        scale = ((high - low) / levels(8)).clamp_min(torch.finfo(torch.float32).tiny * 2**20)
        zero = (-low / scale).round().to(torch.int32)
        return packed(round_activation(x, scale, zero).to(torch.uint8), scale, zero, produced(x))

    return forward


def _refuse_tracing() -> None:
    if leaves_python():
        raise UsageError("Scales found at every call cannot be part of a graph for another runtime.", hint="int8, whose scales are fixed")


def _summary(chosen: list[Layer], kept: dict[Layer, str]) -> str:
    kinds = Counter("conv_int8" if isinstance(layer.module, nn.Conv2d) else "linear_int8" for layer in chosen)
    parts = [f"{len(chosen)} of {len(chosen) + len(kept)} layers in integers ({', '.join(f'{n} {kind}' for kind, n in kinds.items())})"]
    parts += [f"{count} in float: {reason}" for reason, count in Counter(kept.values()).items()]
    return "; ".join(parts)
