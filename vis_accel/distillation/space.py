"""The solvers' space for batches whose rows have noise levels of their own.

Space    x has data scale 1 and sigma = noise / signal; a network's input is x_t = alpha x, alpha = 1 / sqrt(1 + sigma^2). With
         n = alpha sigma the denoised image D is
             epsilon         x - sigma output
             v_prediction    alpha x_t - n output          (Salimans and Ho 2022, arXiv:2202.00512, appendix D)
             sample          output
Shapes   x, D, outputs B x ...; sigma B. What a row says of another is nothing.
Not      flow models: their alpha is 1 / (1 + sigma), and no method here was written for them.
"""

from __future__ import annotations

from torch import Tensor

from vis_accel.errors import UnknownNameError

__all__ = ["PREDICTIONS", "along", "alpha", "ddim_step", "denoised", "guided", "noised", "output_for"]

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def along(row: Tensor, like: Tensor) -> Tensor:
    """Numbers of rows (B), shaped so that they multiply `like` (B x ...)."""
    return row.to(like.device, like.dtype).reshape(-1, *[1] * (like.ndim - 1))


def alpha(sigma: Tensor) -> Tensor:
    """The scale of the image in the network's input, of each row."""
    return (1 + sigma.square()).rsqrt()


def noised(image: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x = image + sigma noise."""
    return image + along(sigma, image) * noise


def denoised(output: Tensor, x: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """D that a network's output at x stands for."""
    s, a = along(sigma, x), along(alpha(sigma), x)
    if prediction == "epsilon":
        return x - s * output
    if prediction == "v_prediction":
        return a * a * x - a * s * output
    if prediction == "sample":
        return output
    raise UnknownNameError.of("prediction of a network to be distilled", prediction, PREDICTIONS)


def output_for(image: Tensor, x: Tensor, sigma: Tensor, prediction: str) -> Tensor:
    """The output that stands for D = `image`: the inverse of `denoised`, where sigma > 0."""
    s, a = along(sigma, x), along(alpha(sigma), x)
    if prediction == "epsilon":
        return (x - image) / s
    if prediction == "v_prediction":
        return (a * a * x - image) / (a * s)
    if prediction == "sample":
        return image
    raise UnknownNameError.of("prediction of a network to be distilled", prediction, PREDICTIONS)


def ddim_step(x: Tensor, image: Tensor, sigma: Tensor, lower: Tensor) -> Tensor:
    """One DDIM step from `sigma` to `lower` with D = `image` (Song et al. 2020, arXiv:2010.02502, eq. 12, data scale 1)."""
    return image + along(lower / sigma, x) * (x - image)


def guided(conditional: Tensor, unconditional: Tensor, scale: float | Tensor) -> Tensor:
    """Classifier-free guidance, 1 being none: u + w (c - u), w one number or one for each row (Ho and Salimans 2022, arXiv:2207.12598)."""
    w = along(scale, conditional) if isinstance(scale, Tensor) else scale
    return unconditional + w * (conditional - unconditional)
