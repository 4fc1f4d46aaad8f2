"""What diffusers' pipelines do differently, in one table; the twin of the view of a timm model.

`view(pipeline)` describes a pipeline to the rest of the library: where its denoiser is, what its noise is, which half of a stacked batch is
the unconditional one. A pipeline that is not in the table is read before it is accepted: its class must ask of its scheduler only what the
stand-in answers, and its scheduler must describe noise the samplers have a space for. Otherwise it is refused, with the reason.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from vis_accel.errors import NotApplicableError
from vis_accel.handle import Handle
from vis_accel.samplers.noise import NoiseModel

__all__ = ["PIPELINES", "HalvesWatch", "PipelineView", "Traits", "view"]

Halves = Literal["conditional first", "unconditional first", "none", "unknown"]
NULL_CLASS = 1000  # what DiTPipeline gives its unconditional half, however many classes there are


class Traits(NamedTuple):
    """What one pipeline class does.

    Attributes:
        denoiser: attribute that holds the network.
        halves: how a guided call stacks its two halves.
        latent: whether the samples are an autoencoder's latents.
        family: of networks with a published table of knots (`NoiseModel.family`).
    """

    denoiser: Literal["unet", "transformer"]
    halves: Halves
    latent: bool
    family: str = ""


# fmt: off
PIPELINES: dict[str, Traits] = {
    "DDPMPipeline":                      Traits("unet", "none", False),
    "DDIMPipeline":                      Traits("unet", "none", False),
    "DiTPipeline":                       Traits("transformer", "conditional first", True),
    "StableDiffusionPipeline":           Traits("unet", "unconditional first", True, "sd"),
    "StableDiffusionImg2ImgPipeline":    Traits("unet", "unconditional first", True, "sd"),
    "StableDiffusionInpaintPipeline":    Traits("unet", "unconditional first", True, "sd"),
    "StableDiffusionXLPipeline":         Traits("unet", "unconditional first", True, "sdxl"),
    "PixArtAlphaPipeline":               Traits("transformer", "unconditional first", True),
    "StableDiffusion3Pipeline":          Traits("transformer", "unconditional first", True),
    "FluxPipeline":                      Traits("transformer", "none", True),
}
# fmt: on

# What the stand-in scheduler answers; a pipeline that asks for anything else was written for one scheduler in particular.
_ANSWERED = frozenset(
    ("add_noise", "config", "init_noise_sigma", "num_inference_steps", "order", "scale_model_input", "scale_noise", "set_begin_index",
     "set_timesteps", "step", "timesteps")
)  # fmt: skip
_PLANNED_BY = frozenset(("device", "mu", "num_inference_steps", "sigmas", "timesteps"))  # the arguments of its set_timesteps
# How pipelines mention the scheduler without asking more of it.
_HARMLESS = re.compile(r"retrieve_timesteps\(\s*self\.scheduler,|(has|get)attr\(self\.scheduler, \"\w+\"")


@dataclass(frozen=True)
class PipelineView:
    """A pipeline, described.

    Attributes:
        pipeline: the pipeline itself.
        traits: its row of the table, or one read from its class.
    """

    pipeline: Any
    traits: Traits

    @property
    def name(self) -> str:
        """The pipeline's class."""
        return type(self.pipeline).__name__

    @property
    def denoiser(self) -> nn.Module:
        """The network that is called once per evaluation."""
        network: nn.Module = getattr(self.pipeline, self.traits.denoiser)
        return network

    @property
    def decoder(self) -> nn.Module | None:
        """The network that makes pixels of latents, if the pipeline works on latents."""
        found = getattr(getattr(self.pipeline, "vae", None), "decoder", None) if self.traits.latent else None
        return found if isinstance(found, nn.Module) else None

    @cached_property
    def noise(self) -> NoiseModel:
        """Noise of the network, from the scheduler it was shipped with.

        Raises:
            NotApplicableError: for noise that the samplers have no space for.
        """
        family = self.traits.family
        if family == "sd" and getattr(self.denoiser.config, "cross_attention_dim", None) != 768:
            family = ""  # Stable Diffusion 2 and others in the same pipeline
        return replace(NoiseModel.from_config(self.pipeline.scheduler.config), family=family)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the denoiser's weights as they are loaded; reads all of them."""
        from vis_accel.eval.features import digest

        return digest(self.denoiser)

    def require_halves(self, method: str) -> None:
        """Raises NotApplicableError unless guided calls of the pipeline stack a conditional and an unconditional half."""
        reasons = {
            "none": "no call of it stacks a conditional and an unconditional half",
            "unknown": "which half of its calls is the unconditional one is not known",
        }
        if self.traits.halves not in reasons:
            return
        known = ", ".join(name for name, traits in PIPELINES.items() if traits.halves not in reasons)
        message = f"{method} leaves out the unconditional half of guided calls. {self.name}: {reasons[self.traits.halves]}."
        raise NotApplicableError(message, hint=f"pipelines it is for: {known}; fewer calls shorten any run: dpm(steps=10)")

    def watch_halves(self, handle: Handle) -> HalvesWatch:
        """Says, while `handle` lives, which rows of a call of the denoiser are its conditional half."""
        watch = HalvesWatch(self.pipeline, self.traits.halves)
        if hasattr(type(self.pipeline), "prepare_latents"):
            handle.swap_item(vars(self.pipeline), "prepare_latents", watch.prepare_latents)
        return watch

    def install_scheduler(self, handle: Handle, scheduler: Any) -> None:
        """Puts `scheduler` in the pipeline's place for one while `handle` lives.

        By the instance's own dictionary: assignment would write the class of the stand-in into the pipeline's config, and a folder saved
        meanwhile could not be loaded again.
        """
        handle.swap_item(vars(self.pipeline), "scheduler", scheduler)
        if hasattr(type(self.pipeline), "get_timesteps"):
            handle.swap_item(vars(self.pipeline), "get_timesteps", scheduler.get_timesteps)


class HalvesWatch:
    """Which rows of a call of the denoiser are its conditional half; the pipeline need not have guidance on.

    Most pipelines make their latents by `prepare_latents`, one row an image: a call with twice as many rows is a guided one. DiTPipeline
    has no such method, and its two halves are known by what they are: equal samples, and the null class throughout the second.
    """

    def __init__(self, pipeline: Any, halves: Halves) -> None:
        self.halves = halves
        self.images: int | None = None
        self._prepare = getattr(pipeline, "prepare_latents", None)

    def prepare_latents(self, *args: Any, **kwargs: Any) -> Any:
        """The pipeline's own, looked at."""
        found = self._prepare(*args, **kwargs)  # type: ignore[misc]  # put in only where there is one
        self.images = len(found if isinstance(found, Tensor) else found[0])  # inpainting returns noise and image latents, too
        return found

    def conditional(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> slice | None:
        """The conditional rows of the call `denoiser(*args, **kwargs)`; None: it has no two halves. May wait for the device."""
        sample = args[0] if args else kwargs.get("hidden_states", kwargs.get("sample"))
        if not isinstance(sample, Tensor) or len(sample) % 2:
            return None
        half = len(sample) // 2
        if self._prepare is not None:
            guided = half == self.images
        else:
            labels = kwargs.get("class_labels")
            if not isinstance(labels, Tensor):
                return None
            guided = bool((labels[half:] == NULL_CLASS).all()) and torch.equal(sample[:half], sample[half:])
        if not guided:
            return None
        return slice(0, half) if self.halves == "conditional first" else slice(half, 2 * half)


def view(pipeline: Any) -> PipelineView:
    """Describes `pipeline`.

    Raises:
        NotApplicableError: if it asks of its scheduler what only one class of scheduler has, or has no denoiser we know of.
    """
    cls = type(pipeline)
    known = next((PIPELINES[base.__name__] for base in cls.__mro__ if base.__name__ in PIPELINES and _stock(base)), None)
    if cls.__name__ in PIPELINES and known:
        return PipelineView(pipeline, known)
    return PipelineView(pipeline, _read(pipeline))


def _stock(cls: type) -> bool:
    return cls.__module__.startswith("diffusers.")


def _read(pipeline: Any) -> Traits:
    """Traits of a pipeline that is not in the table, from its class's own text."""
    cls = type(pipeline)
    if getattr(pipeline, "scheduler", None) is None:
        raise NotApplicableError(f"{cls.__name__} has no scheduler: there is no sampler to replace.")
    denoisers = [name for name in ("unet", "transformer") if isinstance(getattr(pipeline, name, None), nn.Module)]
    if len(denoisers) != 1:
        raise NotApplicableError(f"{cls.__name__} has {len(denoisers)} denoisers ({', '.join(denoisers) or 'none'}); one is wanted.")
    text = "\n".join(_source(base) for base in cls.__mro__ if not base.__name__.endswith("Mixin") and base.__name__ != "DiffusionPipeline")
    reason = _unreadable(text)
    if reason:
        raise NotApplicableError(f"{cls.__name__} {reason}.", hint=f"pipelines that are known to work: {', '.join(PIPELINES)}")
    return Traits("unet" if denoisers[0] == "unet" else "transformer", "unknown", hasattr(pipeline, "vae"))


def _unreadable(text: str) -> str | None:
    """What keeps a stand-in from serving a pipeline with this source text, or None."""
    demanded = re.findall(r"isinstance\(\s*self\.scheduler,\s*\(?([\w., ]+)", text)
    if demanded:
        return f"treats {demanded[0].strip(', ')} in a way of its own: a stand-in would change its result"
    plans = " ".join(re.findall(r"(?:retrieve_timesteps|self\.scheduler\.set_timesteps)\(([^)]*)\)", text))
    asked = {*re.findall(r"self\.scheduler\.(\w+)", text)} - _ANSWERED | {*re.findall(r"(\w+)=", plans)} - _PLANNED_BY
    if asked:
        return f"asks its scheduler for {', '.join(sorted(asked))}, which a stand-in does not have"
    if "self.scheduler.step(" not in text:
        return "does not run its scheduler itself, so that a stand-in would do nothing"
    if re.search(r"^(?!.*#.*self\.scheduler).*self\.scheduler\b(?!\.)", _HARMLESS.sub("", text), flags=re.MULTILINE):
        return "hands its scheduler to other code, which may ask it for anything"
    return None


def _source(cls: type) -> str:
    try:
        return inspect.getsource(cls)
    except (OSError, TypeError):  # built-in, or made at run time
        return ""
