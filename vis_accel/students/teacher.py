"""A pipeline as a teacher: its denoiser with guidance, in the solvers' space, a noise level for each row.

Pipelines   class-conditional ones whose network takes `timestep` and `class_labels` (DiTPipeline), and unconditional ones (DDPMPipeline,
            DDIMPipeline); StableDiffusionPipeline with prompts in the place of classes (prompts.py). Their noise must be
            variance-preserving over discrete times; a flow model is refused.
Guidance    both halves in one call of twice the rows, the unconditional one with the pipeline's null class.
Copies      a student is a copy with every dropout off, and so is its class embedding's own: a diffusers class embedding drops labels in
            training mode, in each block another one, and would teach the student to ignore its class.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel.distillation import space
from vis_accel.errors import NotApplicableError, UsageError
from vis_accel.pipelines import PipelineView, view
from vis_accel.samplers.noise import NoiseModel
from vis_accel.students import prompts
from vis_accel.students.halves import NULL_CLASS

__all__ = ["Teacher", "open_teacher", "without_dropout"]

_CLASSES, _PLAIN = ("DiTPipeline",), ("DDPMPipeline", "DDIMPipeline")
_FULL_ENOUGH = 1e5  # a table above it has no signal at its last time


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen denoiser.

    Attributes:
        pipeline: whose it is.
        network: in evaluation mode, without gradients.
        noise: what it was trained on.
        classes: how many there are; 0: it is unconditional.
        guidance: w; None: it is not guided.
        prompts: what its classes are, if they are texts.
        text: the prompts, encoded ((classes + 1) x tokens x width), the last for none; None: it takes no text.
    """

    pipeline: Any
    network: nn.Module
    noise: NoiseModel
    classes: int
    guidance: float | None
    prompts: tuple[str, ...] = ()
    text: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one sample: channels, height, width."""
        config: Any = self.network.config
        return (config.in_channels, config.sample_size, config.sample_size)

    @property
    def null(self) -> int:
        """The class that stands for none."""
        return NULL_CLASS if self.text is None else self.classes

    @property
    def latent(self) -> bool:
        """Whether samples are an autoencoder's latents."""
        return hasattr(self.pipeline, "vae")

    def sigmas(self, times: Tensor) -> Tensor:
        """Noise levels of whole network times (any shape)."""
        return torch.tensor(self.noise.table, dtype=torch.float32)[times.cpu()].to(times.device)

    def output(self, network: Callable[..., Any], x: Tensor, sigma: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """What `network` says, as it was trained to say it: B x C x H x W in float32.

        Args:
            network: this teacher's or a student's.
            x: B x C x H x W, data scale 1.
            sigma, times: of each row (B), the same noise level twice.
            labels: classes (B); not looked at by an unconditional network.
        """
        sample = space.along(space.alpha(sigma), x) * x
        if self.text is not None:
            found = network(sample, times, encoder_hidden_states=self.text.to(x.device)[labels], return_dict=False)[0]
        elif self.classes:
            found = network(sample, timestep=times, class_labels=labels, return_dict=False)[0]
        else:
            found = network(sample, times, return_dict=False)[0]
        output: Tensor = found[:, : x.shape[1]].float()  # without a learned variance
        return output

    def denoise(self, network: Callable[..., Any], x: Tensor, sigma: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        """D of `network`, as it is: of a student that has learned guidance, the guided one."""
        image = space.denoised(self.output(network, x, sigma, times, labels), x, sigma, self.noise.prediction)
        return image if self.noise.clip is None else image.clamp(-self.noise.clip, self.noise.clip)

    def guided_output(self, x: Tensor, sigma: Tensor, times: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
        """The teacher's own output with guidance `scale` (B), as a pipeline guides it: outputs are mixed, not images."""
        twice, levels, when = (torch.cat([part, part]) for part in (x, sigma, times))
        halves = self.output(self.network, twice, levels, when, torch.cat([labels, torch.full_like(labels, self.null)]))
        conditional, unconditional = halves.chunk(2)
        return space.guided(conditional, unconditional, scale)

    def guided(self, x: Tensor, sigma: Tensor, times: Tensor, labels: Tensor, scale: float | Tensor | None = None) -> Tensor:
        """The teacher's own D with guidance, `scale` or its own."""
        w = self.guidance if scale is None else scale
        if w is None or not self.classes:
            return self.denoise(self.network, x, sigma, times, labels)
        twice, levels, when = (torch.cat([part, part]) for part in (x, sigma, times))
        halves = self.denoise(self.network, twice, levels, when, torch.cat([labels, torch.full_like(labels, self.null)]))
        conditional, unconditional = halves.chunk(2)
        return space.guided(conditional, unconditional, w)

    def student(self) -> nn.Module:
        """A copy to be trained: what it computes is the teacher's output, to the bit."""
        return without_dropout(copy.deepcopy(self.network)).requires_grad_(True)


def open_teacher(pipeline: Any, guidance: float | None, asked: tuple[str, ...] = ()) -> Teacher:
    """A pipeline as a teacher.

    Args:
        pipeline: of diffusers.
        guidance: w; None for an unconditional pipeline.
        asked: prompts, for a text-to-image pipeline.

    Raises:
        NotApplicableError: a pipeline of another kind, a text-to-image one without prompts, a flow model, or one that starts from pure
            noise and predicts it.
        UsageError: guidance that the pipeline does not have, or none where it has.
    """
    found = view(pipeline)
    text = prompts.encoded(pipeline, asked)
    classes = _classes(found) if text is None else len(asked)
    noise = found.noise
    if noise.kind != "vp":
        raise NotApplicableError(
            f"{found.name} is a {noise.kind} model; these distillations are for variance-preserving ones.",
            hint="a pipeline whose scheduler has betas: epsilon, v_prediction or sample",
        )
    if noise.sigma_max > _FULL_ENOUGH:
        raise NotApplicableError(f"{found.name} has no signal at its last time (zero terminal SNR): its students have no first step here.")
    if not classes and guidance is not None:
        raise UsageError(f"{found.name} takes no classes, so there is nothing to guide.", hint="leave out --guidance")
    if classes and guidance is None:
        raise UsageError(f"Which guidance shall the student of {found.name} have?", hint="--guidance 5")
    network = without_dropout(found.denoiser).eval().requires_grad_(False)
    return Teacher(pipeline, network, noise, classes, guidance, asked, text)


def without_dropout(network: nn.Module) -> nn.Module:
    """`network`, its dropouts and those of its class embeddings set to 0, in place."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob") and hasattr(module, "embedding_table"):
            module.dropout_prob = 0.0  # type: ignore[assignment]
    return network


def _classes(found: PipelineView) -> int:
    if found.name in _CLASSES:
        known = getattr(found.pipeline, "labels", None)
        return len(known) if known else int(found.denoiser.config.num_embeds_ada_norm)  # type: ignore[union-attr, arg-type]
    if found.name in _PLAIN:
        return 0
    raise NotApplicableError(f"{found.name} cannot be a teacher yet.", hint=f"known: {', '.join((*_CLASSES, *_PLAIN))}")
