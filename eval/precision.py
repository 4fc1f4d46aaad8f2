"""One call of a network in every precision and by every backend, timed side by side, beside what the machine's kernels can do at best.

    python eval/precision.py                    vit, dit, unet; writes eval/results/precision.json, target by target
    python eval/precision.py --targets dit      one of them again, the others kept
    python eval/precision.py --quick            a try-out, to runs/precision-quick.json

For each target all rows are interleaved in this process; the first row is the network as it comes (float32, eager). Beside its time a row
has the signal-to-noise ratio of its answer against that row's (dB), and what its kernels were called by PyTorch's profiler or by OpenVINO.
The ceilings are one Linear and one convolution of the target's own shapes in float32, bfloat16 and integers, timed in the same run.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel import accelerate, load
from vis_accel.eval.counters import macs
from vis_accel.eval.speed import Timings, interleave
from vis_accel.files import write_atomic
from vis_accel.generation import Job
from vis_accel.machine import commit, machine, versions
from vis_accel.pipelines import view
from vis_accel.precision import kernels
from vis_accel.precision.layers import candidates
from vis_accel.precision.observe import observed
from vis_accel.precision.rounding import channel_scales, round_weight
from vis_accel.runtime.openvino import OpenVinoForward

RESULTS = Path(__file__).parent / "results" / "precision.json"
QUICK = Path("runs/precision-quick.json")
RECIPES = (
    "bf16",
    "compile",
    "bf16 + compile",
    "bf16 + channels-last + compile",
    "compile(backend='openvino')",
    "bf16 + compile(backend='openvino')",
    "int8",
    "int8 + compile",
    "bf16 + int8 + compile",
    "bf16 + channels-last + int8 + compile",
    "int8 + compile(backend='openvino')",
    "bf16 + int8 + compile(backend='openvino')",
)
STOCK, PURE = "float32, eager", "all in bfloat16, compiled"
SETTINGS = {"rounds": 12, "warmup": 1, "budget_s": 150.0}
TARGETS = ("vit", "dit", "unet")


class Target:
    """A network with one call of it.

    Attributes:
        whole: what recipes are put on: the pipeline, or the network.
        network: what is called.
        call: with a batch ready.
        sampler: what a pipeline is calibrated with; empty for a network.
        text: what is measured, in words.
    """

    def __init__(self, name: str) -> None:
        torch.manual_seed(0)
        self.calibration: Any = None
        self.sampler = ""
        if name == "vit":
            self.whole = self.network = load("timm/vit_small_patch16_224", random_weights=True)
            self.args: tuple[Any, ...] = (torch.randn(16, 3, 224, 224),)
            self.kwargs: dict[str, Any] = {}
            self.calibration = torch.randn(16, 3, 224, 224)
            self.text = "vit_small_patch16_224, random weights, batch 16"
            return
        self.whole = load(f"cifar10-{name}")
        self.whole.set_progress_bar_config(disable=True)
        self.network, self.sampler = view(self.whole).denoiser, "dpm(steps=10) + "
        if name == "dit":
            labels = torch.cat([torch.arange(64) % 10, torch.full((64,), 1000)])
            self.args, self.kwargs = (
                (torch.randn(64, 4, 8, 8).repeat(2, 1, 1, 1),),
                {"timestep": torch.full((128,), 500), "class_labels": labels},
            )
            self.calibration = Job(class_labels=tuple(range(10)), guidance_scale=5.0)
            self.text = "cifar10-dit, one guided call of 64 images (128 rows)"
        else:
            self.args, self.kwargs = (torch.randn(64, 3, 32, 32), torch.tensor(500)), {}
            self.text = "cifar10-unet, one call of 64 images"

    def call(self) -> Tensor:
        """The network's answer."""
        found = self.network(*self.args, **self.kwargs)
        return found if isinstance(found, Tensor) else found.sample  # type: ignore[no-any-return]


@torch.no_grad()
def measured(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """All rows of one target."""
    torch._dynamo.reset()
    target = Target(name)
    answer = target.call()
    handles, rows, runs = dict[str, Any](), dict[str, dict[str, Any]](), dict[str, Callable[[], object]]({STOCK: target.call})
    for recipe in RECIPES:
        try:
            started = time.perf_counter()
            handle = accelerate(target.whole, target.sampler + recipe, calibration=target.calibration)
            applied = time.perf_counter()
            found = target.call()
            first = time.perf_counter() - applied
            rows[recipe] = {
                "apply_s": applied - started,
                "first_call_s": first,
                "snr_db": _snr(found, answer),
                "layers": handle.report().get("int8"),
                "kernels": _kernels(target),
            }
            handle.suspend()
        except Exception as error:  # what a runtime raises about a network is a fact of the table
            rows[recipe] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            continue
        handles[recipe], runs[recipe] = handle, target.call
    runs[PURE], rows[PURE] = _pure(target, answer)
    ceilings = _ceilings(target)
    runs |= {label: run for label, (run, _) in ceilings.items()}

    active: list[Any] = []

    def prepare(label: str) -> None:
        while active:
            active.pop().suspend()
        if label in handles:
            handles[label].resume()
            active.append(handles[label])

    timings = interleave(runs, prepare=prepare, **settings)
    prepare(STOCK)
    work = macs(target.network, *target.args, **target.kwargs)
    return _written(target, rows, timings, ceilings, work)


def _written(target: Target, rows: dict[str, Any], timings: Timings, ceilings: dict[str, Any], work: int) -> dict[str, Any]:
    speeds = {label: 2e-9 * flops / timings.median(label) for label, (_, flops) in ceilings.items()}
    floats = [label for label in (*RECIPES, PURE) if "bf16" in label or label == PURE if "int8" not in label and label in timings.rounds]
    best = min(floats, key=timings.median)
    for label in (STOCK, *rows):
        if label in timings.rounds:
            reached = 2e-9 * work / timings.median(label)
            kind = "int8" if "int8" in label else "bf16" if label in floats else "float32"
            rows.setdefault(label, {}).update(
                seconds=timings.median(label), spread_s=timings.spread(label),
                over_float32_eager=_interval(timings.ratio(label, STOCK)), over_best_bf16=_interval(timings.ratio(label, best)),
                gflops=reached, share_of_ceiling=reached / max(speed for name, speed in speeds.items() if name.endswith(kind)),
                unstable=timings.unstable(label),
            )  # fmt: skip
    return {"what": target.text, "gmacs": work / 1e9, "best_bf16": best, "ceilings_gflops": speeds, "rows": rows}


def _interval(ratio: Any) -> dict[str, float]:
    return {"value": ratio.value, "low": ratio.low, "high": ratio.high, "rounds": ratio.n}


def _snr(found: Tensor, wanted: Tensor) -> float:
    return float(10 * torch.log10(wanted.pow(2).mean() / (found - wanted).pow(2).mean()))


def _pure(target: Target, answer: Tensor) -> tuple[Callable[[], object], dict[str, Any]]:
    """The network with all its weights and inputs in bfloat16, compiled: what a user may try first."""
    twin = torch.compile(copy.deepcopy(target.network).to(torch.bfloat16), dynamic=False)
    args = tuple(value.to(torch.bfloat16) if value.is_floating_point() else value for value in target.args)
    found = twin(*args, **target.kwargs)
    found = found if isinstance(found, Tensor) else found.sample
    return (lambda: twin(*args, **target.kwargs)), {"snr_db": _snr(found.float(), answer)}


def _kernels(target: Target) -> dict[str, int]:
    """The kernels that multiply matrices in one call, and how often each is called."""
    forward = vars(target.network).get("forward")
    if isinstance(forward, OpenVinoForward):
        nodes = [node.get_rt_info() for graph in forward._graphs.values() for node in graph.nodes()]
        types = [(str(info["layerType"].astype(str)), str(info["primitiveType"].astype(str))) for info in nodes]
        return dict(
            Counter(
                f"{kind}: {primitive}"
                for kind, primitive in types
                if kind in ("FullyConnected", "Convolution", "MatMul", "ScaledDotProductAttention")
            )
        )
    with torch.profiler.profile() as profile:
        target.call()
    wanted = (
        "int8",
        "mkldnn_convolution",
        "addmm",
        "::mm",
        "_int_mm",
        "linear_pointwise",
        "convolution_pointwise",
        "scaled_dot",
        "cpp_fused_bmm",
    )
    return {event.key: event.count for event in profile.key_averages() if any(part in event.key for part in wanted)}


def _ceilings(target: Target) -> dict[str, tuple[Callable[[], object], int]]:
    """The largest Linear and the largest convolution of the network on random numbers: label -> (call, multiply-accumulates)."""
    layers = list(candidates(target.network))
    with observed(layers) as seen:
        target.call()
    found: dict[str, tuple[Callable[[], object], int]] = {}
    for kind in (nn.Linear, nn.Conv2d):
        same = [layer for layer in seen if type(layer.module) is kind and min(layer.module.weight.shape[:2]) >= 16 and layer.macs > 1e6]
        if not same:
            continue
        layer = max(same, key=lambda one: one.macs)
        module, x = copy.deepcopy(layer.module), torch.randn(layer.shape)
        if kind is nn.Conv2d:
            module, x = module.to(memory_format=torch.channels_last), x.contiguous(memory_format=torch.channels_last)
        low, low_x = copy.deepcopy(module).to(torch.bfloat16), x.to(torch.bfloat16)
        scales = channel_scales(module.weight)
        packed = kernels.pack(module, round_weight(module.weight, scales), scales)
        whole = (x * 40 + 128).clamp(0, 255).to(torch.uint8)
        scale, zero = torch.tensor(0.025), torch.tensor(128, dtype=torch.int32)
        shape = f"{kind.__name__} {'x'.join(map(str, layer.shape))} -> {module.weight.shape[0]}"
        found[f"{shape}, float32"] = (lambda module=module, x=x: module(x)), layer.macs
        found[f"{shape}, bf16"] = (lambda low=low, x=low_x: low(x)), layer.macs
        found[f"{shape}, int8"] = (lambda packed=packed, x=whole, s=scale, z=zero: packed(x, s, z, torch.bfloat16)), layer.macs
    return found


def main() -> None:
    """Reads the command line, measures, writes after every target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path, settings = (QUICK, {"rounds": 2, "warmup": 0, "budget_s": 1.0}) if options.quick else (RESULTS, SETTINGS)
    whole = json.loads(path.read_text()) if path.is_file() else {"targets": {}}
    for name in options.targets:
        found = measured(name, settings)
        facts = {"threads": options.threads, "settings": settings, "machine": machine(), "versions": versions(), "commit": commit()}
        whole["targets"][name] = found | facts
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(whole, indent=1) + "\n")
        for label, row in found["rows"].items():
            print(
                f"{name} {label:45s}",
                row.get("error") or f"{row['seconds'] * 1e3:8.1f} ms  {row['over_float32_eager']['value']:.2f}x",
                flush=True,
            )


if __name__ == "__main__":
    main()
