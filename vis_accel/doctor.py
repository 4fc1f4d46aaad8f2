"""`vis-accel doctor`: what this machine has, each optional part run once, and the line that installs what is missing.

Being installed proves nothing: a compiler is called, an attention kernel computes, a session is opened.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Finding", "examine", "table"]


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, whether it works, what was seen, and what to type if it does not.

    Attributes:
        state: "ok", "missing" (not installed, not needed for the main job) or "broken".
    """

    name: str
    state: str
    seen: str
    mend: str | None = None


def examine() -> list[Finding]:
    """Looks at everything once; takes some seconds, most of them for imports and the compiler."""
    return [
        _required("python", lambda: platform.python_version()),
        _required("torch", _torch),
        _required("diffusers", lambda: _version("diffusers")),
        _required("timm", lambda: _version("timm")),
        _required("machine", _machine),
        _required("bundled models", _models),
        _optional("compiler", _compile, "apt install g++   (or the compiler of your system)"),
        _optional("GPU", _gpu, None),
        _optional("transformers", lambda: _version("transformers"), "pip install 'vis-accel[text]'"),
        _optional("xformers", _xformers, "pip install 'vis-accel[cuda]'   (needs a CUDA GPU)"),
        _optional("openvino", _openvino, "pip install 'vis-accel[openvino]'"),
        _optional("onnxruntime", _onnx, "pip install 'vis-accel[onnx]'"),
        _optional("peft", lambda: _version("peft"), "pip install 'vis-accel[peft]'"),
        _optional("gradio", lambda: _version("gradio"), "pip install 'vis-accel[app]'"),
    ]


def table(findings: list[Finding], format: str = "auto") -> str:
    """The findings as text or JSON."""
    if format == "json":
        return json.dumps([asdict(finding) for finding in findings], indent=1)
    lines = []
    for finding in findings:
        lines.append(f"{finding.name:15} {finding.state:8} {finding.seen}")
        if finding.mend and format != "quiet":
            lines.append(f"{'':24} {finding.mend}")
    return "\n".join(lines)


class _Absent(Exception):
    """Not there, which is fine."""


def _required(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, "ok", look())
    except Exception as error:  # whatever it is, it is what the user wants to see
        return Finding(name, "broken", f"{type(error).__name__}: {error}".split("\n")[0], "pip install -U vis-accel")


def _optional(name: str, look: Callable[[], str], mend: str | None) -> Finding:
    try:
        return Finding(name, "ok", look())
    except (_Absent, ModuleNotFoundError) as error:
        return Finding(name, "missing", str(error).split("\n")[0], mend)
    except Exception as error:
        return Finding(name, "broken", f"{type(error).__name__}: {error}".split("\n")[0], mend)


def _version(package: str) -> str:
    from importlib import import_module
    from importlib.metadata import version

    import_module(package)
    return version(package)


def _torch() -> str:
    import torch

    x = torch.randn(256, 256)
    started = time.perf_counter()
    for _ in range(10):
        x = x @ x / 16
    speed = 10 * 2 * 256**3 / (time.perf_counter() - started) / 1e9
    isa = torch.backends.cpu.get_cpu_capability()
    return f"{torch.__version__}, {torch.get_num_threads()} threads, {isa}, {speed:.0f} GFLOP/s on a small product"


def _machine() -> str:
    from vis_accel.machine import machine

    facts = machine()
    memory = facts["memory_bytes"]
    size = f", {int(memory) / 2**30:.0f} GiB" if memory is not None else ""
    return f"{facts['processor']}, {facts['cores']} cores{size}"


def _models() -> str:
    from vis_accel.zoo import MODELS, load

    for name in MODELS:
        load(name)
    return ", ".join(MODELS)


def _compile() -> str:
    import torch

    def double(x: Any) -> Any:
        return x * 2 + 1

    started = time.perf_counter()
    try:
        torch.compile(double)(torch.ones(8))
    except Exception as error:
        if "compiler" in str(error).lower():
            raise _Absent("no C++ compiler was found; torch.compile needs one") from error
        raise
    return f"torch.compile built a small graph in {time.perf_counter() - started:.0f} s"


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise _Absent("none; everything runs on the CPU")
    torch.ones(8, device="cuda").sum().item()
    return torch.cuda.get_device_name()


def _xformers() -> str:
    import torch

    if not torch.cuda.is_available():
        raise _Absent("not tried: it has no CPU operators and there is no GPU")
    from xformers import ops

    x = torch.randn(1, 16, 4, 32, device="cuda", dtype=torch.float16)
    ops.memory_efficient_attention(x, x, x)
    return _version("xformers")


def _openvino() -> str:
    import openvino

    return f"{openvino.get_version()}, devices {', '.join(openvino.Core().available_devices)}"


def _onnx() -> str:
    import onnxruntime

    return f"{onnxruntime.__version__}, {', '.join(onnxruntime.get_available_providers())}"
