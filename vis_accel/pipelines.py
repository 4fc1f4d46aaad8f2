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

from torch import nn

from vis_accel.errors import NotApplicableError
from vis_accel.handle import Handle
from vis_accel.samplers.noise import NoiseModel

__all__ = ["PIPELINES", "PipelineView", "Traits", "view"]

Halves = Literal["conditional first", "unconditional first", "none", "unknown"]


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

    def install_scheduler(self, handle: Handle, scheduler: Any) -> None:
        """Puts `scheduler` in the pipeline's place for one while `handle` lives.

        By the instance's own dictionary: assignment would write the class of the stand-in into the pipeline's config, and a folder saved
        meanwhile could not be loaded again.
        """
        handle.swap_item(vars(self.pipeline), "scheduler", scheduler)
        if hasattr(type(self.pipeline), "get_timesteps"):
            handle.swap_item(vars(self.pipeline), "get_timesteps", scheduler.get_timesteps)


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
