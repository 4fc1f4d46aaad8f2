"""The facts of where a number was measured: the machine, the versions, the commit. All plain values, ready for JSON."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("vis-accel", "torch", "torchvision", "diffusers", "timm", "torchmetrics", "numpy")


def machine() -> dict[str, str | int | None]:
    """The processor, its cores and instruction sets, the threads in use and the operating system; imports PyTorch if it is installed."""
    facts: dict[str, str | int | None] = {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory(),
        "python": platform.python_version(),
        "torch": None,
        "threads": None,
        "isa": None,
        "accelerator": None,
    }
    try:
        import torch
    except ImportError:
        return facts
    facts["torch"] = str(torch.__version__)
    facts["threads"] = torch.get_num_threads()
    facts["isa"] = torch.backends.cpu.get_cpu_capability()
    facts["accelerator"] = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return facts


def versions() -> dict[str, str]:
    """The versions of this package and of those that can change a number; packages not installed are left out."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit(root: Path | None = None) -> str | None:
    """The commit this package runs from, with `+changes` if tracked files differ from it; None outside a checkout.

    Args:
        root: the folder to ask about; by default the one that holds this package.
    """
    root = Path(__file__).resolve().parents[1] if root is None else root
    if not (root / ".git").exists():  # installed: a checkout further up would be somebody else's
        return None
    head = _git(root, "rev-parse", "HEAD")
    if not head:
        return None
    return f"{head}+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else head


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
