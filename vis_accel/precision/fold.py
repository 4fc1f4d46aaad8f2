"""Factors and shifts of channels, moved from what a norm gives into the layers that read it: other numbers, the same function.

A norm gives x_c = gamma_c n_c + beta_c, its readers y = W x + b. With x' = x / r - t, for any r_c > 0 and any t_c:

    gamma' = gamma / r      beta' = beta / r - t          the norm gives x'
    W' = W diag(r)          b' = b + W' t                 its readers give the same y

Affine   a LayerNorm with a weight of its own. Who reads it is seen in a run: if everything that takes its output is a Linear that takes
         nothing else, the move is exact; otherwise it stays. No list of models is needed, and what a method on tokens does is seen too.
Adaptive a DiT block's norms, n (1 + scale) + shift, where one Linear of the block makes scale and shift from the time: the move goes into
         the rows of that Linear, since (1 + scale) / r = 1 + scale' with scale' = scale / r + (1 / r - 1).
Not      a GroupNorm before an activation: no factor passes through. Norms whose scale comes from outside their block (PixArt): the blocks
         share it, and each would need another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from vis_accel.errors import ConflictError, NoEffectError, UsageError
from vis_accel.handle import Handle
from vis_accel.method import Context, Method
from vis_accel.networks import networks_of

__all__ = ["Place", "Survey", "check_float", "survey", "surveyed", "told"]

_ADAPTIVE_PARTS = 6  # of a DiT block's modulation: shift, scale and gate of attention, shift, scale and gate of the MLP
_CLOSE = 1e-3  # relative: whether a norm computes what its class says, in whatever precision it does


@dataclass(eq=False)
class Place:
    """A norm and the layers that read it.

    Attributes:
        name: of the norm.
        norm: the LayerNorm; of an adaptive one, the Linear that makes its scale and shift.
        readers: the Linears that take what it gives.
        rows: of an adaptive one, which parts of that Linear's output are the shift and the scale.
        low, high: least and largest value of each channel in the run, float32 [C].
    """

    name: str
    norm: Any
    readers: list[nn.Linear] = field(default_factory=list)
    rows: tuple[int, int] | None = None
    low: Tensor = field(default_factory=lambda: torch.empty(0))
    high: Tensor = field(default_factory=lambda: torch.empty(0))

    def see(self, x: Tensor) -> None:
        """Takes in one output, ... x C."""
        flat = x.detach().float().flatten(0, -2)
        low, high = flat.amin(0), flat.amax(0)
        self.low, self.high = (torch.minimum(self.low, low), torch.maximum(self.high, high)) if len(self.low) else (low, high)

    def move(self, handle: Handle, factors: Tensor, shifts: Tensor | None = None) -> None:
        """Makes the norm give x / factors - shifts (each [C]), and its readers what they gave before."""
        r, t = factors.double(), torch.zeros_like(factors, dtype=torch.float64) if shifts is None else shifts.double()
        if self.rows is None:
            _put(handle, self.norm, "weight", self.norm.weight.double() / r)
            _put(handle, self.norm, "bias", _bias(self.norm, t) / r - t)
        else:
            self._modulate(handle, r, t)
        for reader in self.readers:
            weight = reader.weight.double() * r
            if shifts is not None:
                _put(handle, reader, "bias", _bias(reader, weight[:, 0]) + weight @ t)
            _put(handle, reader, "weight", weight)

    def _modulate(self, handle: Handle, r: Tensor, t: Tensor) -> None:
        """The same for an adaptive norm: into the rows that make its shift and its scale."""
        shift, scale = (slice(part * len(r), (part + 1) * len(r)) for part in self.rows or ())
        weight, bias = self.norm.weight.double().clone(), self.norm.bias.double().clone()
        weight[shift] /= r[:, None]
        weight[scale] /= r[:, None]
        bias[shift] = bias[shift] / r - t
        bias[scale] = (1 + bias[scale]) / r - 1
        _put(handle, self.norm, "weight", weight)
        _put(handle, self.norm, "bias", bias)


def _bias(module: Any, like: Tensor) -> Tensor:
    """The module's bias in double precision, [len(like)]."""
    return torch.zeros_like(like) if module.bias is None else module.bias.detach().double()


def _put(handle: Handle, module: Any, name: str, value: Tensor) -> None:
    old = module._parameters[name]
    like = module.weight if old is None else old
    handle.swap_item(module._parameters, name, nn.Parameter(value.detach().to(like.dtype), requires_grad=like.requires_grad))


@dataclass
class Survey:
    """What a run showed.

    Attributes:
        places: where factors can be moved, in the order of the network.
        left: why other norms stay as they are: reason -> how many.
    """

    places: list[Place] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


def check_float(method: Method, view: Any) -> None:
    """Raises ConflictError if the network is rounded already: its weights are then read by no one."""
    if any(hasattr(vars(module).get("forward"), "bits") for module in networks_of(method, view, vae=False)[0].modules()):
        raise ConflictError(
            f"{method.name}: this network is quantized already.",
            hint=f"remove the other recipe first, and apply both as one: {method.name} + int8",
        )


def survey(method: Method, context: Context, images: int) -> Survey:
    """What a run of the recipe on about `images` images shows.

    Raises:
        NoEffectError: no norm whose factors could be moved.
    """
    if context.exercise is None:
        raise UsageError(f"{method.name} takes the ranges of channels from a run of the target; apply it by accelerate().")
    network = networks_of(method, context.view, vae=False)[0]
    with surveyed(network) as found:
        context.exercise(images)
    if not found.places:
        reasons = "; ".join(f"{count} {reason}" for reason, count in found.left.items()) or "it has no layer norms"
        raise NoEffectError(f"{method.name} found no norm in {type(network).__name__} whose factors Linears could take over: {reasons}.")
    return found


def told(found: Survey, factors: Tensor) -> str:
    """What was moved, in words."""
    readers = sum(len(place.readers) for place in found.places)
    parts = [f"{len(found.places)} norms into {readers} layers, factors {float(factors.min()):.3g} .. {float(factors.max()):.3g}"]
    return "; ".join(parts + [f"{count} left: {reason}" for reason, count in found.left.items()])


@contextmanager
def surveyed(network: nn.Module) -> Iterator[Survey]:
    """While open, watches who reads which norm of the network; the survey is filled in when it closes."""
    found, watch = Survey(), _Watch()
    adaptive = list(_adaptive(network))
    inside = {module for place in adaptive for module in (place.norm, *place.readers)}
    with ExitStack() as hooks:
        for name, module in network.named_modules():
            if isinstance(module, nn.LayerNorm) and module.weight is not None:
                hooks.callback(module.register_forward_hook(watch.giver(Place(name, module))).remove)
            elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
                found.left[_reason(network, name, module)] += 1
            elif isinstance(module, nn.Linear) and module not in inside:
                hooks.callback(module.register_forward_pre_hook(watch.reader).remove)
        for place in adaptive:
            for reader in place.readers:
                hooks.callback(reader.register_forward_pre_hook(_seen_by(place, first=reader is place.readers[0])).remove)
        with watch:
            yield found
    found.left -= Counter({_OWN: len(adaptive)})
    for place in adaptive:
        if len(place.low):
            found.places.append(place)
        else:
            found.left["never called"] += 1
    for place, reason in watch.judged():
        if reason is None:
            found.places.append(place)
        else:
            found.left[reason] += 1
    order = {name: index for index, (name, _) in enumerate(network.named_modules())}
    found.places.sort(key=lambda place: order[place.name])


_OWN = "its scale is no parameter of its own"


def _reason(network: nn.Module, name: str, module: nn.Module) -> str:
    if isinstance(module, nn.GroupNorm):
        return "a group norm before an activation or a convolution"
    parent = network.get_submodule(name.rpartition(".")[0])
    return "blocks share its scale" if vars(parent).get("norm_type") == "ada_norm_single" else _OWN


def _adaptive(network: nn.Module) -> Iterator[Place]:
    """The two norms of every DiT block whose scales and shifts come from a Linear of its own."""
    for name, block in network.named_modules():
        if type(block).__name__ != "BasicTransformerBlock" or vars(block).get("norm_type") != "ada_norm_zero":
            continue
        parts: Any = block
        made, attention, entry = parts.norm1.linear, parts.attn1, getattr(parts.ff.net[0], "proj", None)
        if made.bias is None or made.out_features != _ADAPTIVE_PARTS * made.in_features or parts.only_cross_attention:
            continue
        joint = [attention.to_qkv] if getattr(attention, "fused_projections", False) else [attention.to_q, attention.to_k, attention.to_v]
        yield Place(f"{name}.norm1", made, joint, rows=(0, 1))
        if type(entry) is nn.Linear:
            yield Place(f"{name}.norm3", made, [entry], rows=(3, 4))


def _seen_by(place: Place, *, first: bool) -> Callable[..., None]:
    def look(module: Any, args: tuple[Any, ...]) -> None:
        if first:
            place.see(args[0])

    return look


class _Watch(TorchFunctionMode):
    """Who takes the outputs of which norm: a Linear as a whole, or any operation besides."""

    def __init__(self) -> None:
        super().__init__()
        self.given = WeakIdKeyDictionary()  # output -> its place, while the output lives
        self.places: list[Place] = []
        self.uses: Counter[Place] = Counter()  # by any operation
        self.reads: Counter[tuple[Place, nn.Module]] = Counter()  # by a Linear
        self.calls: Counter[nn.Module] = Counter()  # of a Linear, whatever it takes
        self.odd = set[Place]()

    def giver(self, place: Place) -> Callable[..., None]:
        """A hook of the place's norm."""
        self.places.append(place)

        def look(module: Any, args: tuple[Any, ...], output: Tensor) -> None:
            if not len(place.low) and not _plain(module, args[0], output):
                self.odd.add(place)
            place.see(output)
            self.given[output] = place

        return look

    def reader(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """A pre-hook of every Linear."""
        self.calls[module] += 1
        place = self.given.get(args[0]) if args and isinstance(args[0], Tensor) else None
        if place is not None:
            self.reads[place, module] += 1

    def judged(self) -> Iterator[tuple[Place, str | None]]:
        """Each place, with its readers or with the reason why it has to stay."""
        for place in self.places:
            readers = {module: count for (one, module), count in self.reads.items() if one is place}
            place.readers = [module for module in readers if isinstance(module, nn.Linear)]
            yield place, self._reason(place, readers)

    def _reason(self, place: Place, readers: dict[nn.Module, int]) -> str | None:
        if not len(place.low):
            return "never called"
        if place in self.odd:
            return "it computes more than its class says"
        if not readers:
            return "no Linear reads it"
        if self.uses[place] != sum(readers.values()):
            return "not only Linears read it"
        if any(self.calls[module] != count for module, count in readers.items()):
            return "its readers read something else too"
        if any("forward" in vars(module) or type(module).forward is not nn.Linear.forward for module in readers):
            return "a reader is no plain Linear"
        return None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        taken = [place for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor) and (place := self.given.get(leaf)) is not None]
        out = func(*args, **(kwargs or {}))
        if taken and any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):  # asking for a shape is no use
            self.uses.update(taken)
        return out


def _plain(norm: nn.LayerNorm, x: Tensor, output: Tensor) -> bool:
    """Whether the norm gave weight * normalised + bias over the last dimension, which is all that a move is exact for."""
    if len(norm.normalized_shape) != 1 or output.shape != x.shape:
        return False
    wanted = functional.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), None, norm.eps)
    wanted = wanted if norm.bias is None else wanted + norm.bias.float()
    slack = _CLOSE if output.dtype == torch.float32 else 10 * _CLOSE
    return bool((output.float() - wanted).abs().max() <= slack * wanted.abs().max())
