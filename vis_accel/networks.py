"""Which networks of a target run again and again: the denoiser of a pipeline and the decoder behind it, or the vision model itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vis_accel.errors import NotApplicableError
from vis_accel.method import Method

if TYPE_CHECKING:
    from torch import nn

__all__ = ["networks_of"]


def networks_of(method: Method, view: Any, *, vae: bool) -> list[nn.Module]:
    """The networks `method` takes hold of, the denoiser or the model first.

    Args:
        view: of the target.
        vae: whether a pipeline's decoder is one of them, if it has one.

    Raises:
        NotApplicableError: the target has no network that is known.
    """
    network = getattr(view, "denoiser", None) or getattr(view, "model", None)
    if network is None:
        raise NotApplicableError(f"{method.name} is for a pipeline's denoiser or a vision model.")
    decoder = getattr(view, "decoder", None)
    return [network, decoder] if vae and decoder is not None else [network]
