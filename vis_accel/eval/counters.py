"""What a run cost, counted: calls, rows, multiply-accumulates and peak memory. Nothing here is inferred from a number of steps.

calls   evaluations of the denoiser in time                   the axis of every table
rows    images passed through it; / images made = NFE         a guided call of batch 2B has 2B rows
macs    multiply-accumulates of one call, or of many          torch's FLOP counter / 2: matrix products, convolutions, attention
memory  the most the process held (CPU), or torch allocated (CUDA), measured in a run of its own: it slows the run down
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vis_accel.errors import RunError, UsageError

__all__ = ["CallCounter", "WorkCounter", "macs", "peak_memory"]


class CallCounter:
    """Counts the calls of a module, and the rows they carried, while the context is open.

        with CallCounter(pipe.unet) as counter:
            images = pipe(...).images
        counter.calls, counter.rows / len(images)

    The numbers stay readable afterwards; opening the context again starts from 0. Hooks run on `module(...)`, so a replaced `forward` is
    counted and a direct `module.forward(...)` is not.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.calls = 0
        self.rows = 0
        self._hook: RemovableHandle | None = None

    def __enter__(self) -> CallCounter:
        if self._hook is not None:
            raise UsageError("This counter is already counting.")
        self.calls = self.rows = 0
        self._hook = self.module.register_forward_pre_hook(self._count, with_kwargs=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.calls += 1
        self.rows += _rows([*args, *kwargs.values()])


class WorkCounter:
    """Counts the multiply-accumulates of every call of a module while the context is open: those of a cache differ from call to call.

    What `macs` says of fused layers and integer kernels holds here too. A call is counted between hooks, so what a method does in hooks
    of its own (a forecast, say) is not.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.macs = 0
        self._hooks: list[RemovableHandle] = []
        self._call: Any = None

    def __enter__(self) -> WorkCounter:
        self.macs = 0
        self._hooks = [
            self.module.register_forward_pre_hook(self._begin),
            self.module.register_forward_hook(self._end, prepend=True, always_call=True),
        ]
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()

    def _begin(self, module: nn.Module, args: object) -> None:
        from torch.utils.flop_counter import FlopCounterMode

        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        self._call = FlopCounterMode(display=False), fast
        self._call[0].__enter__()

    def _end(self, module: nn.Module, args: object, output: object) -> None:
        if self._call is None:  # the call failed before it was counted
            return
        (counter, fast), self._call = self._call, None
        counter.__exit__(None, None, None)
        torch.backends.mha.set_fastpath_enabled(fast)
        self.macs += int(counter.get_total_flops()) // 2


def _rows(values: Iterable[object]) -> int:
    """The batch of a call: the first dimension of its first tensor that is no mere vector of times; or the length of a list of images."""
    for value in values:
        if isinstance(value, Tensor) and value.ndim >= 2:
            return len(value)
        if isinstance(value, (list, tuple)) and value and all(isinstance(item, Tensor) and item.ndim >= 2 for item in value):
            return len(value)
    raise UsageError("The counted module was called without a batch of images.", hint="count the denoiser: pipe.unet or pipe.transformer")


@torch.no_grad()
def macs(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """Multiply-accumulates of `module(*args, **kwargs)`, which is run once. Divide by the batch for a figure per image.

    PyTorch's fused encoder layers hide their work from the counter, so they are switched off for that call. Integer kernels are counted as
    nothing: count a quantized network on its float twin.

    Raises:
        RunError: nothing was counted: every operation is one the counter does not know.
    """
    from torch.utils.flop_counter import FlopCounterMode

    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter:
            module(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    found = int(counter.get_total_flops()) // 2
    if not found:
        raise RunError(f"No multiplication of {type(module).__name__} could be counted.", hint="count the network before it is quantized")
    return found


def peak_memory(fn: Callable[[], object], device: str | torch.device = "cpu", period: float = 0.002) -> int:
    """Runs `fn` once and returns the most memory in use meanwhile, in bytes.

    On the CPU this is the resident memory of the whole process, weights and interpreter included, sampled every `period` seconds (a shorter
    allocation can be missed); on CUDA, what torch had allocated on the device.

    Raises:
        UsageError: a device or an operating system whose memory cannot be read.
    """
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.synchronize(where)
        torch.cuda.reset_peak_memory_stats(where)
        fn()
        torch.cuda.synchronize(where)
        return torch.cuda.max_memory_allocated(where)
    if where.type != "cpu":
        raise UsageError(f"Peak memory can be measured on cpu and cuda; got {where.type!r}.")
    return _peak_resident(fn, period)


def _peak_resident(fn: Callable[[], object], period: float) -> int:
    peak = _resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(period):
            peak = max(peak, _resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        fn()
        last = _resident()  # what fn returned may be its peak
    finally:
        done.set()
        watcher.join()
    return max(peak, last)


def _resident() -> int:
    """Resident memory of this process in bytes."""
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError) as error:
        raise UsageError("Peak memory on the CPU is read from /proc, which this system lacks.", hint="measure it on Linux") from error
    return pages * resource.getpagesize()
