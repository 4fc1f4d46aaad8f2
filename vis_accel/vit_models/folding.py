"""Folding: batch norms become part of the convolutions before them, and what timm re-parameterises is re-parameterised.

What computes the same is folded, and the logits are compared before and after. Norms that stand before a convolution, or whose input has
other readers, stay.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from vis_accel.errors import ModelError
from vis_accel.vit_models.closeness import close, closeness, logits

__all__ = ["Folding", "copied", "evaluating", "fold", "folded"]


@dataclass(frozen=True, kw_only=True)
class Folding:
    """What was folded.

    Attributes:
        norms: batch norms before.
        reparameterized: those left by timm's re-parameterisation.
        left: those left in the end.
        difference: the largest of a logit, relative to the largest logit of its image.
    """

    norms: int
    reparameterized: int
    left: int
    difference: float


@torch.no_grad()
def folded(model: nn.Module, images: Tensor) -> tuple[nn.Module, Folding]:
    """A copy of `model` in evaluation mode with everything folded that can be, checked on the first two of `images`.

    Raises:
        ModelError: the copy does not compute the same.
    """
    from timm.models import reparameterize_model

    plain, x = copied(model), images[:2]
    want = logits(plain, x)
    network: nn.Module = reparameterize_model(copied(model)).eval()  # eval() again: attention biases are kept from before
    between = _count(network)
    _fold_norms(network, x)
    got = logits(network, x)
    moved = closeness(got, want).difference
    if not bool(close(got, want).all()):
        message = f"Folding the batch norms of {type(model).__name__} moves its logits by {moved:.2g} of the largest."
        raise ModelError(message, hint="reparameterize=False, on the command line --no-reparameterize")
    return network, Folding(norms=_count(plain), reparameterized=between, left=_count(network), difference=moved)


def fold(network: nn.Module, images: Tensor) -> nn.Module:
    """Folds `network`, in place where timm can, and returns it. Nothing is compared: `folded` does that."""
    from timm.models import reparameterize_model

    network = reparameterize_model(network, inplace=True).eval()  # eval() again: attention biases are kept from before
    _fold_norms(network, images[:2])
    return network


def copied(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without what a forward left behind: timm keeps attention biases, which are stale after a change of the
    weights, and which nothing copies if gradients were on."""
    with evaluating(model):
        return copy.deepcopy(model).eval()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, entered anew even if it is on: that is when timm forgets attention biases."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _count(network: nn.Module) -> int:
    return sum(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules())


def _fold_norms(network: nn.Module, x: Tensor) -> None:
    """Folds, in place, each batch norm into the convolution before it, where nothing else reads that convolution's output.

    Which those are is seen in one forward: what a norm takes is the very tensor a convolution gave, and no other operation takes it.
    """
    seen = _Seen()
    hooks = [part.register_forward_hook(seen.note) for part in network.modules() if _foldable(part)]
    with seen:
        network(x)
    for hook in hooks:
        hook.remove()
    names = {id(part): name for name, part in network.named_modules()}
    for norm, convolution in seen.pairs():
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        after = nn.Identity() if type(norm) is nn.BatchNorm2d else nn.Sequential(norm.drop, norm.act)
        network.set_submodule(names[id(norm)], after)


def _foldable(part: nn.Module) -> bool:
    """Classes whose computation is known, by exact name: a subclass may standardise its weights, or do more than normalise."""
    if type(part).__name__ in ("BatchNorm2d", "BatchNormAct2d"):
        return part.running_mean is not None
    return type(part) is nn.Conv2d or type(part).__name__ == "Conv2dSame"


class _Seen(TorchFunctionMode):
    """Who gave and who took the tensors of one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, tuple[nn.Module, Tensor]] = {}  # by the tensor's id, which the reference keeps from being used again
        self.taken: list[tuple[nn.Module, Tensor]] = []
        self.uses: Counter[int] = Counter()
        self.calls: Counter[int] = Counter()

    def note(self, part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.calls[id(part)] += 1
        if isinstance(part, nn.Conv2d):
            self.given[id(output)] = part, output
            self.uses[id(output)] = 0
        else:
            self.taken.append((part, inputs[0]))

    def pairs(self) -> list[tuple[Any, Any]]:
        """(norm, convolution) that can become one: each ran once, and only the one reads the other."""
        found = [(norm, self.given[id(x)][0], x) for norm, x in self.taken if id(x) in self.given]
        return [(norm, conv) for norm, conv, x in found if self.uses[id(x)] == self.calls[id(norm)] == self.calls[id(conv)] == 1]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):  # asking for a shape is no use
            self.uses.update(id(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor))
        return out
