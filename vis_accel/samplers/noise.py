"""What a network was trained on: its noise levels, its times, and what its output means.

Space    solvers work on x with data scale 1 and sigma = noise / signal. A network works on its own scale x_t = alpha * x:
             vp     alpha = 1 / sqrt(1 + sigma^2),  x_t = alpha x0 + sqrt(1 - alpha^2) eps,  time t = 0 .. T-1 (fractions allowed)
             flow   alpha = 1 / (1 + sigma),        x_t = (1 - s) x0 + s eps,                time t = T s,  s = sigma / (1 + sigma)
             edm    alpha = 1 / sqrt(sigma^2 + q^2), the input's preconditioning,             time t = ln(sigma) / 4
         with q the deviation of the data. An edm image, sigma = 0, leaves in its own scale: there alpha is 1.
Outputs  with a = alpha and n = alpha * sigma, the denoised image D is
             epsilon            (x_t - n output) / a
             v_prediction       a x_t - n output          v = a eps - n x0 (Salimans and Ho 2022, arXiv:2202.00512)
             sample             output
             flow_prediction    x_t - n output            velocity eps - x0 (Lipman et al. 2023, arXiv:2210.02747)
         and of an edm network a q^2 x_t + n q output (Karras et al. 2022, arXiv:2206.00364, table 1), for v_prediction with a minus.
Infinity a flow model at s = 1, and a zero-terminal-SNR one at t = T-1, see no signal: sigma would be infinite. SIGMA_CAP stands for
         it. There n is 1 exactly, alpha is 1 / SIGMA_CAP, and the network is asked at its true last time. (An epsilon network says
         nothing about the image there, so that pair is refused.)
Shapes   any; images are along dimension 0, channels (learned variance only) along dimension 1.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vis_accel.errors import NotApplicableError, UnknownNameError, UsageError
from vis_accel.samplers import source_config

SIGMA_CAP = 1e6  # stands for infinity: 1 / SIGMA_CAP is below what float32 images can show, SIGMA_CAP**2 is far from overflow

Kind = Literal["vp", "flow", "edm"]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow_prediction"]
PREDICTIONS: dict[Kind, tuple[Prediction, ...]] = {
    "vp": ("epsilon", "v_prediction", "sample"),
    "flow": ("flow_prediction", "sample"),
    "edm": ("epsilon", "v_prediction"),  # by the names diffusers has for the sign of the output
}


class Evaluation(NamedTuple):
    """What a denoiser answers for one request.

    Attributes:
        denoised: D(x; sigma), the image expected under the noise; shape of x.
        share: where the variance of a step lies between its two bounds, 0 the smaller, 1 the larger, if the network learned it
            (`split_variance`); shape of x.
    """

    denoised: Tensor
    share: Tensor | None = None


Denoiser = Callable[[Tensor, float], Evaluation]


@dataclass(frozen=True, kw_only=True)
class NoiseModel:
    """Times, noise levels and output meaning of one network.

    Attributes:
        kind: "vp" (variance-preserving, a table over discrete times), "flow" (straight paths, continuous time) or "edm" (preconditioned).
        prediction: what the network's output is; see the module's table.
        table: vp only: sigma at t = 0 .. T-1, rising; the last may be SIGMA_CAP.
        times: T, the number of discrete times (flow: the factor between s and t).
        shift: flow only: s -> shift s / (1 + (shift - 1) s), applied by the "flow" and "trailing" schedules.
        ramp_end: flow only: the smallest s, before `shift`, of the "flow" schedule.
        sigmas: edm only: the smallest and the largest noise level.
        data_std: edm only: standard deviation of the data.
        steps_offset: vp only: added to the times of the "leading" schedule.
        clip: D is clamped to [-clip, clip]; None: it is not.
        family: "sd" or "sdxl" for networks with a published table of knots; "" for all others.
        threshold: (ratio, largest): dynamic thresholding of D instead (Saharia et al. 2022, arXiv:2205.11487, sec. 2.3).

    Raises:
        UsageError: fields that contradict each other.
    """

    kind: Kind
    prediction: Prediction
    table: tuple[float, ...] = ()
    times: int = 1000
    shift: float = 1.0
    ramp_end: float = 0.001
    sigmas: tuple[float, float] = (0.0, 0.0)
    data_std: float = 0.5
    steps_offset: int = 0
    clip: float | None = None
    threshold: tuple[float, float] | None = None
    family: str = ""

    def __post_init__(self) -> None:
        if self.kind not in PREDICTIONS:
            raise UnknownNameError.of("kind of noise", str(self.kind), PREDICTIONS)
        if self.prediction not in PREDICTIONS[self.kind]:
            raise UnknownNameError.of(f"prediction of a {self.kind} network", str(self.prediction), PREDICTIONS[self.kind])
        if self.kind == "flow":
            if not (self.shift > 0 and 0 < self.ramp_end < 1 and not self.table):
                raise UsageError(f"A flow model needs shift > 0, 0 < ramp_end < 1 and no table; got {self.shift}, {self.ramp_end}.")
            return
        if self.kind == "edm":
            if self.table or not (0 < self.sigmas[0] < self.sigmas[1] < SIGMA_CAP and self.data_std > 0):
                raise UsageError(f"An edm model needs 0 < smallest < largest sigma, data_std > 0 and no table; got {self.sigmas}.")
            return
        if len(self.table) != self.times or self.times < 2:
            raise UsageError(f"A vp model needs one sigma for each of its times (at least 2): {len(self.table)} for {self.times}.")
        if not (self.table[0] > 0 and all(a < b for a, b in zip(self.table, self.table[1:], strict=False))):
            raise UsageError("A vp model's table of sigmas must be positive and strictly rising.")
        if self.sigma_max >= SIGMA_CAP and self.prediction == "epsilon":
            raise NotApplicableError(
                "This model starts from pure noise (zero terminal SNR) but predicts the noise: there its output says nothing "
                "about the image. Such models predict v_prediction or sample."
            )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> NoiseModel:
        """Reads the configuration of any diffusers scheduler that describes a VP or a flow model.

        Only what the network was trained on is read: betas, prediction, clipping, flow shift. How the source spaced its steps
        (Karras flags, timestep_spacing, final_sigmas_type) is a schedule's business and is ignored.

        Args:
            config: `pipe.scheduler.config`, complete as diffusers gives it.

        Raises:
            NotApplicableError: noise this package has no space for, with the reason.
        """
        return cls(**source_config.read(config, infinity=SIGMA_CAP))

    @property
    def sigma_min(self) -> float:
        """The smallest noise level the network was trained on."""
        if self.kind == "edm":
            return self.sigmas[0]
        return self.table[0] if self.kind == "vp" else self.sigma_at(1.0)

    @property
    def sigma_max(self) -> float:
        """The largest noise level the network was trained on; SIGMA_CAP if it is infinite."""
        if self.kind == "edm":
            return self.sigmas[1]
        return self.table[-1] if self.kind == "vp" else SIGMA_CAP

    @property
    def starts_finite(self) -> bool:
        """Whether the first noise level is a number: schedules over sigma need one."""
        return self.sigma_max < SIGMA_CAP

    @cached_property
    def _log_table(self) -> tuple[float, ...]:
        return tuple(math.log(s) for s in self.table)

    def alpha(self, sigma: float) -> float:
        """The scale of the image in the network's input: x_t = alpha(sigma) * x."""
        if self.kind == "edm":
            return 1.0 / math.hypot(sigma, self.data_std) if sigma > 0 else 1.0
        if sigma >= SIGMA_CAP:
            return 1.0 / sigma  # so that the noise in x_t has standard deviation 1 exactly
        return 1.0 / (1.0 + sigma) if self.kind == "flow" else 1.0 / math.sqrt(1.0 + sigma * sigma)

    def sigma_at(self, time: float) -> float:
        """Noise over signal at a network time; log-linear between the times of a table, which it meets exactly.

        Raises:
            UsageError: a time the network does not know.
        """
        if self.kind == "edm":
            return math.exp(4 * time)
        last = self.times if self.kind == "flow" else self.times - 1
        if not 0 <= time <= last:
            raise UsageError(f"Time {time} is outside the network's 0 .. {last}.")
        if self.kind == "flow":
            s = time / self.times
            return min(s / (1.0 - s), SIGMA_CAP) if s < 1 else SIGMA_CAP
        low = math.floor(time)
        if low == time:
            return self.table[low]
        part = time - low
        return math.exp((1 - part) * self._log_table[low] + part * self._log_table[low + 1])

    def time_at(self, sigma: float) -> float:
        """The network time for a noise level, fractional between a table's; the inverse of `sigma_at`.

        Levels outside the table get its first or last time: the network knows no other.
        """
        if self.kind == "edm":
            return math.log(sigma) / 4
        if self.kind == "flow":
            return float(self.times) if sigma >= SIGMA_CAP else self.times * sigma / (1.0 + sigma)
        high = bisect_left(self.table, sigma)
        if high == len(self.table):
            return high - 1.0
        if high == 0 or self.table[high] == sigma:
            return float(high)
        below, above = self._log_table[high - 1], self._log_table[high]
        return high - 1 + (math.log(sigma) - below) / (above - below)

    def denoised(self, output: Tensor, sample: Tensor, sigma: float) -> Tensor:
        """The denoised image D that a network's output stands for, clipped or thresholded as the model wants it.

        Args:
            output: what the network returned, shape of `sample` (cut off a learned variance first: `split_variance`).
            sample: x_t, the network's input, in the network's own scale.
            sigma: the noise level of `sample`.
        """
        a = self.alpha(sigma)
        n = a * sigma
        if self.kind == "edm":
            q = self.data_std if self.prediction == "epsilon" else -self.data_std
            image = a * q * q * sample + n * q * output
        elif self.prediction == "epsilon":
            image = torch.sub(sample, output, alpha=n).div_(a)
        elif self.prediction == "v_prediction":
            image = (a * sample).sub_(output, alpha=n)
        elif self.prediction == "flow_prediction":
            image = torch.sub(sample, output, alpha=n)
        else:
            image = output
        if self.threshold is not None:
            return dynamic_threshold(image, *self.threshold)
        return image if self.clip is None else image.clamp(-self.clip, self.clip)

    def denoiser(self, network: Callable[[Tensor, float], Tensor], *, round_times: bool = False) -> Denoiser:
        """Wraps a network for the pull form of sampling.

        Args:
            network: (x_t, time) -> output, x_t in the network's own scale; [B, C, ...] in, [B, C or 2C, ...] out.
            round_times: ask at whole times only, for networks that look their time up in a table.

        Returns:
            (x, sigma) -> Evaluation, in the solvers' space.
        """

        def denoise(x: Tensor, sigma: float) -> Evaluation:
            sample = self.alpha(sigma) * x
            time = self.time_at(sigma)
            output, share = network(sample, float(round(time)) if round_times else time), None
            if x.ndim > 1 and output.shape[1] == 2 * x.shape[1]:
                output, share = split_variance(output)
            return Evaluation(self.denoised(output, sample, sigma), share)

        return denoise


def dynamic_threshold(image: Tensor, ratio: float, largest: float) -> Tensor:
    """Clamps each image to its own `ratio` quantile of absolute values, kept in [1, largest], and divides by it.

    Args:
        image: [B, ...], any rank; latents [B, L, C] as well as [B, C, H, W].
        ratio: which quantile, 0 .. 1; the paper's value is 0.995.
        largest: upper bound of the quantile.
    """
    rows = image.abs().float().reshape(image.shape[0] if image.ndim else 1, -1)
    place = ratio * (rows.shape[1] - 1)
    low = math.floor(place)
    # torch.quantile refuses more than 2^24 elements; two order statistics do not.
    below, above = (rows.kthvalue(min(k, rows.shape[1] - 1) + 1, dim=1).values for k in (low, low + 1))
    s = torch.lerp(below, above, place - low).clamp(1.0, max(1.0, largest)).to(image.dtype)
    s = s.reshape(-1, *[1] * (image.ndim - 1)) if image.ndim else s.reshape(())
    return image.clamp(-s, s) / s


def split_variance(output: Tensor) -> tuple[Tensor, Tensor]:
    """Splits the output of a learned-variance network (Nichol and Dhariwal 2021, arXiv:2102.09672, eq. 15).

    Args:
        output: [B, 2C, ...]: the prediction, then v, which runs from -1 (smallest variance) to 1 (largest).

    Returns:
        The prediction and (v + 1) / 2, both [B, C, ...]. Between which bounds is the step's business: a longer step has wider ones.
    """
    if output.shape[1] % 2:
        raise UsageError(f"A learned variance needs an even number of channels; got {output.shape[1]}.")
    prediction, v = output.chunk(2, dim=1)
    return prediction, (v + 1) / 2
