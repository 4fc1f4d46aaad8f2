"""The network that is fine-tuned: loaded, built for the size of the images, with a head for the classes of the data."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vis_accel.errors import NotApplicableError, UsageError, shown
from vis_accel.zoo import timm_folder

__all__ = ["Opened", "class_names", "head_modules", "network_of", "open_network"]


@dataclass(frozen=True)
class Opened:
    """A network of timm, ready to be trained.

    Attributes:
        network: in evaluation mode.
        size: side of its images in pixels.
        arguments: its architecture's, besides the number of classes.
        head_kept: whether it knew these classes already, so that it can be scored before training.
        notes: what was done to it, for the reader.
    """

    network: Any
    size: int
    arguments: dict[str, Any]
    head_kept: bool
    notes: tuple[str, ...]


def open_network(name: str, *, random_weights: bool, size: int | None, classes: Sequence[str], seed: int) -> Opened:
    """Opens a network for the data.

    Args:
        name: timm/NAME, a bundled classifier, or a folder that a fine-tuning wrote.
        random_weights: for timm/NAME: the architecture alone.
        size: of the images in pixels; None: the network's own.
        classes: names, in the order of the labels.
        seed: of a fresh head.

    Raises:
        NotApplicableError: not a classifier of timm's kind.
        UsageError: a size the network cannot take, or random weights of what is not timm/NAME.
        ModelError: weights that cannot be had or are broken.
    """
    network = network_of(name, random_weights=random_weights)
    if not hasattr(network, "reset_classifier") or not hasattr(network, "pretrained_cfg"):
        raise NotApplicableError(f"{name} is no classifier of timm's kind, so it cannot be fine-tuned.", hint="it may serve as --teacher")
    own = int(network.pretrained_cfg["input_size"][-1])
    size = own if size is None else size
    arguments = dict(network.pretrained_cfg.get("model_args") or {})
    notes = []
    if size != own:
        network, changed = _sized(network, name, size, own, trained=not random_weights, seed=seed)
        arguments |= changed
        notes.append(f"built for {own} px, trained at {size} px")
    known = class_names(name, network)
    head_kept = not random_weights and network.num_classes == len(classes) and (known is None or tuple(known) == tuple(classes))
    if not head_kept:
        notes.append(f"a new head: {len(classes)} classes instead of {network.num_classes}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network.reset_classifier(len(classes))
    network.eval()
    _try(network, name, size, len(classes))
    return Opened(network, size, arguments, head_kept, tuple(notes))


def network_of(name: str, *, random_weights: bool = False) -> Any:
    """A network by name, as it was saved."""
    from vis_accel.zoo import bundled
    from vis_accel.zoo.load import load

    if name in bundled.MODELS and bundled.MODELS[name].kind == "pipeline":
        raise NotApplicableError(
            f"{name} makes images; what is fine-tuned here tells them apart.", hint="--model cifar10-vit, or timm/NAME"
        )
    network = load(name, random_weights=random_weights)
    if not isinstance(network, nn.Module):
        raise NotApplicableError(f"{name} is a pipeline; what is fine-tuned here tells images apart.", hint="--model timm/NAME")
    return network


def class_names(name: str, network: Any) -> tuple[str, ...] | None:
    """What a network calls its classes; None if nobody said."""
    from vis_accel.zoo import bundled

    if name in bundled.MODELS:
        return bundled.describe(name).classes or tuple(bundled.describe("cifar10-vit").classes)  # both are of CIFAR-10
    return tuple(getattr(network, "pretrained_cfg", {}).get("label_names") or ()) or None


def head_modules(network: Any) -> list[str]:
    """Names of the modules that make logits: two where a distilled network has a second head."""
    heads = network.get_classifier()
    wanted = {id(head) for head in (heads if isinstance(heads, tuple) else (heads,))}
    return [name for name, module in network.named_modules() if id(module) in wanted]


def _takes_size(network: Any) -> bool:
    signatures = [inspect.signature(vars(kind)["__init__"]) for kind in type(network).__mro__[:-1] if "__init__" in vars(kind)]
    return any("img_size" in signature.parameters for signature in signatures)


def _sized(network: Any, name: str, size: int, own: int, *, trained: bool, seed: int) -> tuple[Any, dict[str, Any]]:
    """The network for images of another size, and what its architecture must be told to be built so again."""
    import timm

    from vis_accel.zoo.registered import ARCHITECTURE

    if timm_folder.architecture_of(network) in (None, ARCHITECTURE):
        raise UsageError(f"{name} takes {own} px only; got --size {size}.", hint=f"--size {own}")
    if hasattr(network, "set_input_size"):
        try:
            network.set_input_size(img_size=(size, size))
        except Exception as error:  # timm asserts what it likes
            raise _impossible(name, size, error) from error
        return network, {"img_size": size}
    if not (network.pretrained_cfg.get("fixed_input_size") and _takes_size(network)):
        return network, {}  # convolutions take any size, or the trial below says which they do not
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            fresh = timm.create_model(timm_folder.architecture_of(network), num_classes=network.num_classes, img_size=size)
    except Exception as error:
        raise _impossible(name, size, error) from error
    if trained:
        want, have = fresh.state_dict(), network.state_dict()
        if wrong := [key for key in want if key not in have or have[key].shape != want[key].shape]:
            message = f"{name} was trained at {own} px and has tables of that size, {wrong[0]} among them: they do not fit {size} px."
            raise UsageError(message, hint=f"--size {own}, or start anew at {size} px with --random-weights")
        fresh.load_state_dict(have)
    return fresh, {"img_size": size}


def _try(network: Any, name: str, size: int, classes: int) -> None:
    """One forward, so that a size that does not fit is told before the data are read."""
    try:
        with torch.no_grad():
            logits = network(torch.zeros(2, 3, size, size))
    except Exception as error:
        raise _impossible(name, size, error) from error
    if not isinstance(logits, torch.Tensor) or tuple(logits.shape) != (2, classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise NotApplicableError(f"{name} gives {found} for two images, not 2 x {classes} logits.")
    network.eval()


def _impossible(name: str, size: int, error: Exception) -> UsageError:
    return UsageError(f"{name} does not take images of {size} px: {type(error).__name__}: {shown(str(error), 160)}", hint="another --size")
