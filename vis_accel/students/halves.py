"""One row for both halves of a guided call: what a student that has guidance in its weights saves.

A pipeline stacks two rows an image, asks its network once, and computes u + w (c - u). Here the network gets the conditional rows alone and
both halves are its answer, so that the pipeline's arithmetic gives the answer back: u + w 0 = u, to the bit.
Scale    w is known to the pipeline's call alone. So in the first call of a run one number of u is one less, the arithmetic turns that
         into w - 1 more, and the scheduler's `step`, where the sum arrives, reads w off it and gets the answer itself. A scale that is
         not the student's is refused there, after one call.
Rows     hooks, not a new forward: counters that are put on later count the rows that are computed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vis_accel.clock import Clock
from vis_accel.errors import UsageError
from vis_accel.handle import Handle

__all__ = ["NULL_CLASS", "OneRow"]

NULL_CLASS = 1000  # DiTPipeline writes it whatever the network
_NEAR = 0.02  # relative: what bfloat16 leaves of w


class OneRow:
    """Halves the calls of one pipeline's network.

    Args:
        pipeline: guided by stacked rows, the conditional half first: DiTPipeline.
        run: its clock.
        scale: w of the student; calls with another are refused.
        label: of the method, for messages.
    """

    def __init__(self, pipeline: Any, run: Clock, scale: float, label: str) -> None:
        self.pipeline, self.run, self.scale, self.label = pipeline, run, scale, label
        self._put_back: Callable[[], object] | None = None  # the scheduler's own `step`

    def install(self, handle: Handle, network: Any) -> None:
        """Puts the hooks on `network` while `handle` lives."""
        handle.add_hook(lambda: network.register_forward_pre_hook(self._before, with_kwargs=True))
        handle.add_hook(lambda: network.register_forward_hook(self._after))
        handle.swap(lambda: self._release)  # a run that broke off in its first call

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        state = self._state()
        if state is None:
            return None
        labels: Tensor = kwargs["class_labels"]
        if "stacked" not in state:
            state["stacked"] = self._stacked(labels)
        if not state["stacked"]:
            raise UsageError(
                f"The call asks for no guidance, and {self.label} has guidance_scale={self.scale:g} in its weights.",
                hint=f"call the pipeline with guidance_scale={self.scale:g}",
            )

        def half(part: Any) -> Any:
            return part.chunk(2)[0] if isinstance(part, Tensor) and part.ndim > 0 and len(part) == len(labels) else part

        return tuple(half(part) for part in args), {name: half(part) for name, part in kwargs.items()}

    def _state(self) -> dict[str, bool] | None:
        """What is known of this run; None outside of one, where the network is called by somebody else and left alone."""
        try:
            return self.run.now().remember(self, dict[str, bool])
        except UsageError:
            return None

    def _stacked(self, labels: Tensor) -> bool:
        """Whether the second half of the rows has the null class; waits for the device, so it is asked once a run."""
        return len(labels) % 2 == 0 and bool((labels.chunk(2)[1] == NULL_CLASS).all())

    def _after(self, module: Any, args: tuple[Any, ...], output: Any) -> Any:
        answer: Tensor = output[0]
        state, other = self._state(), answer
        if state is None:
            return output
        if "probed" not in state:
            state["probed"] = True
            other = self._probe(answer)
        both = torch.cat([answer, other])
        return (both, *output[1:]) if isinstance(output, tuple) else type(output)(sample=both)

    def _probe(self, answer: Tensor) -> Tensor:
        """The unconditional half of a run's first call; and the scheduler's next `step` reads off what the pipeline made of it."""
        self._release()
        other, scheduler = answer.clone(), self.pipeline.scheduler
        other.view(-1)[0] -= 1
        own, step = vars(scheduler).get("step"), scheduler.step

        def put_back() -> None:
            if own is None:
                del vars(scheduler)["step"]
            else:
                vars(scheduler)["step"] = own

        def read(model_output: Tensor, *args: Any, **kwargs: Any) -> Any:
            self._release()
            self._check(1 + float(model_output.reshape(-1)[0] - answer[:, : model_output.shape[1]].reshape(-1)[0]))
            whole = torch.cat([answer, answer])[: len(model_output), : model_output.shape[1]]
            return step(whole, *args, **kwargs)

        vars(scheduler)["step"], self._put_back = functools.wraps(step)(read), put_back
        return other

    def _check(self, asked: float) -> None:
        if abs(asked - self.scale) > _NEAR * self.scale:
            raise UsageError(
                f"The call asks for guidance_scale={asked:.3g}, and {self.label} has {self.scale:g} in its weights.",
                hint=f"call the pipeline with guidance_scale={self.scale:g}",
            )

    def _release(self) -> None:
        if self._put_back is not None:
            self._put_back()
            self._put_back = None
