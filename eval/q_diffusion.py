"""What calibration over the run, split shortcuts and adaptive rounding are worth: the error of each call of a run, recipe by recipe.

    python eval/q_diffusion.py --model cifar10-unet        or cifar10-dit; writes eval/results/q-diffusion.json, row by row
    python eval/q_diffusion.py --model cifar10-dit --only "q-diffusion(weights=4)"       one row again, the others kept

Every row is given the inputs of the float32 run, call by call, on seeds that no calibration sees: a call's error is its own, not what
earlier calls led to. Its signal-to-noise ratio is that of the network's raw answer (dB); the worst call is the row's figure. The interval
is a bootstrap over images. The rivals: weights to the nearest number by scales that lose least, ranges of all calls at once by their
extremes, nothing split ("plain"), and ranges taken from a single call, as for a network that is called once ("one call").
Beside it, the mean square error of each split shortcut's own output against the same layer unsplit, on the same inputs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vis_accel import accelerate, load
from vis_accel.files import write_atomic
from vis_accel.generation import Job, generate
from vis_accel.machine import commit, machine, versions
from vis_accel.pipelines import view
from vis_accel.precision.observe import Seen
from vis_accel.precision.q_diffusion import concatenations
from vis_accel.zoo import describe

RESULTS = Path(__file__).parent / "results" / "q-diffusion.json"
SAMPLER = "dpm(steps=10)"
PLAIN = "q-diffusion(weights={w}, rounding='nearest', ranges='static', split=False)"
ROWS = (
    PLAIN.format(w=4),
    "q-diffusion(weights=4, rounding='nearest', ranges='by-step', split=False)",
    "q-diffusion(weights=4, ranges='by-step', split=False)",
    "q-diffusion(weights=4)",
    "efficientdm",
    "q-diffusion(weights=4, activations=4)",
    "efficientdm(activations=4)",
    "q-diffusion(weights=4, activations=4, ranges='static')",
    "q-diffusion(weights=4, activations=4, split=False)",
    PLAIN.format(w=8),
    "q-diffusion(weights=8, ranges='static')",
    "q-diffusion",
)
ALONE = ((PLAIN.format(w=8), (0, 5, 9)), (PLAIN.format(w=4), (0, 5, 9)))  # with the ranges of one call for all ten
IMAGES, BATCH, RESAMPLED = 64, 32, 1000


class Run:
    """The float32 run: what each call was given and answered, and at which call we are."""

    def __init__(self, pipeline: Any, job: Job) -> None:
        self.pipeline, self.job, self.network = pipeline, job, view(pipeline).denoiser
        self.answers: dict[tuple[int, int], Tensor] = {}
        self.at = (0, 0)

    def go(self, hook: Any) -> None:
        """One run over all images; `hook` sees every answer and may put another in its place."""

        def see(module: Any, args: Any, output: Any) -> Any:
            found = hook(output if isinstance(output, Tensor) else output[0])
            self.at = (self.at[0], self.at[1] + 1)
            if found is None:
                return None
            return (found, *output[1:]) if isinstance(output, tuple) else type(output)(sample=found)

        handle = self.network.register_forward_hook(see)
        try:
            for start in range(0, IMAGES, BATCH):
                self.at = (start, 0)
                generate(self.pipeline, self.job, range(start, start + BATCH))
        finally:
            handle.remove()

    def remember(self) -> None:
        """Runs in float32 and keeps the answers."""
        self.go(lambda answer: self.answers.__setitem__(self.at, answer.clone()))

    def errors(self) -> dict[str, Any]:
        """Signal and noise of each call under what is on the pipeline now, an image at a time."""
        signal: dict[int, list[Tensor]] = {}
        noise: dict[int, list[Tensor]] = {}

        def compare(answer: Tensor) -> Tensor:
            wanted = self.answers[self.at]
            rows = [part.flatten(1).square().mean(1) for part in (wanted, answer - wanted)]
            if len(wanted) == 2 * BATCH:  # both halves of guidance belong to one image
                rows = [part.unflatten(0, (2, BATCH)).mean(0) for part in rows]
            signal.setdefault(self.at[1], []).append(rows[0])
            noise.setdefault(self.at[1], []).append(rows[1])
            return wanted

        self.go(compare)
        calls = [_snr(torch.cat(signal[call]), torch.cat(noise[call])) for call in sorted(signal)]
        worst = min(range(len(calls)), key=lambda call: calls[call]["value"])
        return {"calls": calls, "worst": {"call": worst, **calls[worst]}}


def _snr(signal: Tensor, noise: Tensor) -> dict[str, float]:
    """Of images (n each): mean signal over mean noise in dB, with a 95% bootstrap interval."""
    chosen = torch.randint(len(signal), (RESAMPLED, len(signal)), generator=torch.Generator().manual_seed(0))
    again = 10 * torch.log10(signal[chosen].mean(1) / noise[chosen].mean(1))
    value = 10 * torch.log10(signal.mean() / noise.mean())
    return {"value": float(value), "low": float(again.quantile(0.025)), "high": float(again.quantile(0.975))}


def shortcut_errors(pipeline: Any, job: Job, bits: str) -> dict[str, dict[str, float]]:
    """Mean square error of each concatenation's layer, split and not, relative to its output's mean square, on the float32 run's inputs."""
    network = view(pipeline).denoiser
    names = {module: name for name, module in network.named_modules()}
    joints = concatenations(network)
    inputs: dict[nn.Module, list[Tensor]] = {module: [] for module in joints}
    with _watching(inputs):
        generate(pipeline, job, range(BATCH))
    wanted = {module: [module(x) for x in inputs[module]] for module in joints}
    found: dict[str, dict[str, float]] = {names[module]: {} for module in joints}
    for label, split in (("split", True), ("whole", False)):
        recipe = f"{SAMPLER} + q-diffusion({bits}, rounding='nearest', ranges='static', split={split})"
        with accelerate(pipeline, recipe, calibration=job):
            for module in joints:
                pairs = [(module(x), y) for x, y in zip(inputs[module], wanted[module], strict=True)]
                noise = torch.stack([(x - y).square().mean() for x, y in pairs]).mean()
                found[names[module]][label] = float(noise / torch.stack([y.square().mean() for _, y in pairs]).mean())
    return found


@contextmanager
def only_call(wanted: int) -> Iterator[None]:
    """While open, calibrations look at one call of the run and at no other."""
    add = Seen.add

    def one(self: Seen, index: int, x: Tensor) -> None:
        if index == wanted:
            add(self, index, x)

    Seen.add = one  # type: ignore[method-assign]
    try:
        yield
    finally:
        Seen.add = add  # type: ignore[method-assign]


@contextmanager
def _watching(inputs: dict[nn.Module, list[Tensor]]) -> Iterator[None]:
    hooks = [module.register_forward_pre_hook(lambda module, args: inputs[module].append(args[0].clone())) for module in inputs]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def main(model: str, only: list[str]) -> None:
    """All rows of one model."""
    pipeline: Any = load(model)
    pipeline.set_progress_bar_config(disable=True)
    job = Job(**describe(model).job)
    with accelerate(pipeline, SAMPLER):
        run = Run(pipeline, job)
        run.remember()
    whole = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    rows = whole.get(model, {}).get("rows", {})
    alone = {f"{row}, calibrated on call {call}": (row, call) for row, calls in ALONE for call in calls}
    for row in only or (*ROWS, *alone):
        recipe, call = alone.get(row, (row, None))
        if call is not None:  # what was kept of a calibration on all calls is another
            recipe = f"{recipe[:-1]}, fresh=True)"
        with nullcontext() if call is None else only_call(call):
            handle = accelerate(pipeline, f"{SAMPLER} + {recipe}", calibration=job)
        with handle:
            rows[row] = run.errors() | {"report": handle.report().get("q-diffusion")}
        worst = rows[row]["worst"]
        print(f"{row}: worst call {worst['call']}, {worst['value']:.2f} dB [{worst['low']:.2f}, {worst['high']:.2f}]", flush=True)
        shortcuts = whole.get(model, {}).get("shortcuts", {})
        whole[model] = {
            "sampler": SAMPLER, "images": IMAGES, "job": {"guidance_scale": job.guidance_scale}, "rows": rows, "shortcuts": shortcuts,
            "machine": machine(), "versions": versions(), "commit": commit(),
        }  # fmt: skip
        write_atomic(RESULTS, json.dumps(whole, indent=1) + "\n")
    if not only and concatenations(view(pipeline).denoiser):
        for bits in ("weights=4", "weights=4, activations=4"):
            whole[model]["shortcuts"][bits] = shortcut_errors(pipeline, job, bits)
        write_atomic(RESULTS, json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("cifar10-dit", "cifar10-unet"), required=True)
    parser.add_argument("--only", action="append", default=[], help="a recipe without its sampler; may be given several times")
    given = parser.parse_args()
    with torch.inference_mode(False), torch.no_grad():
        main(given.model, given.only)
