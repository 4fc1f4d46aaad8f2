"""What each parameter's learning rate is multiplied by.

layer decay   d ** (L - l) for a parameter of layer l of L: the head learns at the full rate, early layers hardly (Clark et al. 2020,
              arXiv:2003.10555; Bao et al. 2022, arXiv:2106.08254). Layers are timm's own groups of parameters.
LoRA+         the matrices B of adapters learn `ratio` times faster (Hayou et al. 2024, arXiv:2402.12354).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from vis_accel.errors import NotApplicableError
from vis_accel.finetuning.adapters import original_name

__all__ = ["layers", "rate_scales"]


def layers(network: Any) -> dict[str, int]:
    """The layer of each parameter, 0 for the first.

    Raises:
        NotApplicableError: the network does not say what its layers are, or has only one.
    """
    from timm.models import group_parameters

    kind = type(network).__name__
    if not hasattr(network, "group_matcher"):
        message = f"{kind} has no group_matcher, which says what its layers are: --layer-decay cannot go by them."
        raise NotApplicableError(message, hint="leave out --layer-decay")
    found: dict[str, int] = group_parameters(network, network.group_matcher(coarse=False), reverse=True)
    if len(set(found.values())) < 2:
        raise NotApplicableError(
            f"All parameters of {kind} are in one layer: --layer-decay would do nothing.", hint="leave out --layer-decay"
        )
    return found


def rate_scales(
    student: nn.Module, *, places: dict[str, int] | None, decay: float | None, lora_plus: float | None, prefix: str
) -> dict[str, float]:
    """Scales of the trained parameters of `student` whose rate is not the full one.

    Args:
        student: holds the network, with or without adapters.
        places: `layers` of the network before adapters were put on; None without decay.
        decay: d.
        lora_plus: the ratio; None: 1.
        prefix: of the network's parameters' names in `student`; parameters of other parts learn at the full rate.
    """
    last = max(places.values()) if places else 0
    scales = {}
    for name, parameter in student.named_parameters():
        if not parameter.requires_grad or not name.startswith(prefix):
            continue
        scale = 1.0
        if places is not None and decay is not None:
            scale *= decay ** (last - places[original_name(name.removeprefix(prefix))])
        if lora_plus is not None and ".lora_B." in name:
            scale *= lora_plus
        if scale != 1.0:
            scales[name] = scale
    return scales
