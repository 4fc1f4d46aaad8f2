"""The gate between a call's decision, which is Python, and the network's forward, which may be compiled.

A hook outside the forward opens the gate for one call: either everything is computed, and each source hands out what it made, or the
sources answer with what they are served and the layers that only feed them stand idle. Inside the forward the decision is one attribute
that is read and never computed, so torch.compile makes two graphs of a network, not one for each call. A gate holds tensors during one
call only; what lasts longer is in the memory of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from vis_accel.errors import RunError
from vis_accel.handle import Handle

__all__ = ["Gate", "hidden_in"]


class Gate:
    """What passes between the hook and the forward of one network.

    Attributes:
        reuse: whether the call under way serves its sources; set before the forward (or by its first block) and not within.
        served: what each source answers in such a call.
        made: what each source made in any other.
        answered: whether a source was asked in a call that reuses.
    """

    def __init__(self) -> None:
        self.reuse = False
        self.served: Sequence[Any] = ()
        self.made: list[Any] = []
        self.answered = False
        self.sources = 0

    def open(self, served: Sequence[Any] | None) -> None:
        """Prepares a call: one that reuses if it is `served` something."""
        self.reuse, self.served = served is not None, served or ()
        self.made, self.answered = [None] * self.sources, False

    def close(self) -> list[Any]:
        """Ends a call, and gives what its sources made.

        Raises:
            RunError: the forward went past the gate: it was captured as a whole, without the Python in it.
        """
        made, self.made, self.served = self.made, [], ()
        if not (self.answered if self.reuse else all(part is not None for part in made)):
            raise RunError(
                "The network's forward does not see the cache that was put on it: it was captured before, or by other means than "
                "torch.compile.",
                hint="leave the cache out, or compile with the backend 'inductor'",
            )
        return made

    def add_source(self, handle: Handle, module: Any) -> None:
        """Lets `module` hand out its output in full calls, and answer with what it is served in the others."""
        plain, index = module.forward, self.sources
        self.sources += 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            if self.reuse:
                self.answered = True
                return self.served[index]
            found = plain(*args, **kwargs)
            self.made[index] = found
            return found

        handle.swap_forward(module, forward)

    def add_residual_source(self, handle: Handle, block: Any) -> None:
        """The same for a block that returns its two streams, of which it is the change that is handed out and served.

        Both are [B, N, C]; the block takes `hidden_states` and `encoder_hidden_states` and returns (encoder, hidden).
        """
        plain, index = block.forward, self.sources
        self.sources += 1

        def forward(*args: Any, **kwargs: Any) -> Any:
            hidden, encoder = hidden_in(args, kwargs), _encoder_in(args, kwargs)
            if self.reuse:
                self.answered = True
                encoder_change, hidden_change = self.served[index]
                return encoder + encoder_change, hidden + hidden_change
            found = plain(*args, **kwargs)
            self.made[index] = (found[0] - encoder, found[1] - hidden)
            return found

        handle.swap_forward(block, forward)

    def add_idle(self, handle: Handle, module: Any, instead: Callable[..., Any]) -> None:
        """Lets `instead` answer for `module` in calls that reuse."""
        plain = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            return instead(*args, **kwargs) if self.reuse else plain(*args, **kwargs)

        handle.swap_forward(module, forward)


def hidden_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The stream a block was called with."""
    found: Tensor = args[0] if args else kwargs["hidden_states"]
    return found


def _encoder_in(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    found: Tensor = args[1] if len(args) > 1 else kwargs["encoder_hidden_states"]
    return found
