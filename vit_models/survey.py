"""Edge vision transformers side by side: tokens, GMACs, parameters, and images/s by three runtimes, at batch 1 and 32.

    python vit_models/survey.py                     every model below; goes on where it stopped; writes vit_models/results/survey.json
    python vit_models/survey.py --quick --models levit_128s deit_tiny_patch16_224          a try-out, to runs/survey-quick.json
    python vit_models/survey.py --table             the results as a table for README.md

Random weights: speed does not depend on them. Batch norms are folded first, for every runtime alike. For each batch the runtimes of a
model, and deit_tiny as an anchor, are timed interleaved in this process, so their ratios hold on a machine that drifts; images/s of two
models are compared best through their ratios to the anchor. GMACs are multiply-adds an image, counted by PyTorch, not from a formula.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vis_accel import UsageError, load
from vis_accel.eval.speed import Timings, interleave
from vis_accel.exporting import image_size
from vis_accel.files import write_atomic
from vis_accel.machine import commit, machine, versions
from vis_accel.vit_models.families import FAMILIES, family_of, register
from vis_accel.vit_models.folding import folded
from vis_accel.vit_models.view import view

ANCHOR = "deit_tiny_patch16_224"
COMPANY = (ANCHOR, "deit_small_patch16_224", "vit_small_patch16_224")
MORE = ("levit_256", "efficientvit_b1", "efficientvit_m4", "efficientformerv2_s1", "fastvit_sa12", "edgenext_small", "lightvit_small")
SIDE = 224
RUNTIMES = ("eager", "compiled", "openvino")
CLOSE = 1e-3  # how far a runtime's logits may lie from eager's, relative to the largest

Run = Callable[[], object]


@torch.no_grad()
def survey(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One row: what the model is, and its speed by runtime and batch."""
    started = time.perf_counter()
    torch._dynamo.reset()  # or the graphs of models of one class add up to dynamo's limit
    model = _network(name)
    side = image_size(model) if _own_size(name) else (SIDE, SIDE)
    network, folding = folded(model, _batch(2, side))
    row: dict[str, Any] = {
        "family": family_of(name), "size": side[0], "tokens": _tokens(name, model, side[0]), "gmacs": _gmacs(network, side),
        "parameters": sum(p.numel() for p in model.parameters()), "norms": [folding.norms, folding.reparameterized, folding.left],
    }  # fmt: skip
    anchor = _network(ANCHOR)
    for batch in settings["batches"]:
        row[f"batch {batch}"] = _timed(network, anchor, batch, side, settings)
    return row | {"seconds": time.perf_counter() - started}


def _network(name: str) -> Any:
    register(name)
    return load(f"timm/{name}", random_weights=True)


def _own_size(name: str) -> bool:
    family = FAMILIES.get(family_of(name) or "")
    return family is not None and family.size == "resampled"  # it would resample other images, and its work would be that of its own size


def _batch(n: int, side: tuple[int, int]) -> Tensor:
    return torch.randn(n, 3, *side, generator=torch.Generator().manual_seed(0))


def _tokens(name: str, model: Any, side: int) -> str:
    """Tokens of a plain transformer; of a pyramid the positions of its grid, stage by stage; nothing for a convolutional network."""
    seen = view(model)
    if seen.refusal is None:
        return str(seen.prefix + seen.patches)
    if family_of(name) == "crossvit":
        return " and ".join(str(p.shape[1]) for key, p in model.named_parameters() if key.startswith("pos_embed"))
    if family_of(name) == "repvit":
        return ""
    reductions = dict.fromkeys(stage["reduction"] for stage in model.feature_info)
    return " ".join(str(math.ceil(side / step) ** 2) for step in reductions)


def _gmacs(network: Any, side: tuple[int, int]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        network(_batch(1, side))
    return counter.get_total_flops() / 2e9  # it counts a multiply-add as two


def _timed(network: Any, anchor: Any, batch: int, side: tuple[int, int], settings: dict[str, Any]) -> dict[str, Any]:
    """Per runtime: images/s and the ratios to eager and to the anchor; or why it did not run."""
    x, y = _batch(batch, side), _batch(batch, (SIDE, SIDE))
    want, found, runs = network(x), dict[str, Any](), dict[str, Run]({"anchor": lambda: anchor(y)})
    for runtime in RUNTIMES:
        started = time.perf_counter()
        try:
            call = _prepared(runtime, network, x, settings["threads"])
            apart = float((call() - want).abs().max() / want.abs().max())  # type: ignore[operator]
        except Exception as error:  # whatever a runtime raises about a model is a fact of the survey
            found[runtime] = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            continue
        found[runtime] = {"ready_after_s": time.perf_counter() - started, "difference": apart}
        if apart <= CLOSE:
            runs[runtime] = call
        else:
            found[runtime]["error"] = "computes something else"
    limits = {key: settings[key] for key in ("rounds", "warmup", "budget_s")}
    timings = interleave(runs, **limits)
    for runtime in runs.keys() - {"anchor"}:
        found[runtime] |= _speed(timings, runtime, batch)
    return {runtime: found[runtime] for runtime in RUNTIMES} | {"anchor": {"images_per_second": batch / timings.median("anchor")}}


def _prepared(runtime: str, network: Any, x: Tensor, threads: int) -> Run:
    if runtime == "eager":
        return lambda: network(x)
    if runtime == "compiled":
        compiled = torch.compile(network, dynamic=False)
        return lambda: compiled(x)
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about checks of shapes that are fixed here
        converted = openvino.convert_model(network, example_input=x, input=[list(x.shape)])
    exact = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}  # else it may take bf16
    ready, images = openvino.compile_model(converted, "CPU", exact), x.numpy()
    return lambda: torch.from_numpy(ready([images])[0])


def _speed(timings: Timings, runtime: str, batch: int) -> dict[str, Any]:
    ratios = {other: timings.ratio(runtime, base) for other, base in (("over_eager", "eager"), ("over_deit_tiny", "anchor"))}
    return {
        "images_per_second": batch / timings.median(runtime),
        "spread_s": timings.spread(runtime),
        **{key: {"value": ratio.value, "low": ratio.low, "high": ratio.high, "rounds": ratio.n} for key, ratio in ratios.items()},
        "unstable": timings.unstable(runtime),
    }


def _table(rows: dict[str, Any], batches: list[int]) -> str:
    """The rows in Markdown: images/s, with the ratio to eager for the other runtimes."""
    heads = [f"{runtime} b{batch}" for batch in batches for runtime in RUNTIMES]
    lines = [
        "| model | size | tokens | GMACs | parameters | " + " | ".join(heads) + " |",
        "|---|---|---|---|---|" + "---|" * len(heads),
    ]
    for name, row in rows.items():
        cells = [_cell(row[f"batch {batch}"][runtime], runtime) for batch in batches for runtime in RUNTIMES]
        facts = [name, str(row["size"]), row["tokens"], f"{row['gmacs']:.2f}", f"{row['parameters'] / 1e6:.1f} M"]
        lines.append("| " + " | ".join(facts + cells) + " |")
    return "\n".join(lines)


def _cell(found: dict[str, Any], runtime: str) -> str:
    if "images_per_second" not in found:
        return "failed"
    mark = " (unstable)" if any("runs; the mean" not in line for line in found["unstable"]) else ""
    ratio = "" if runtime == "eager" else f" ({found['over_eager']['value']:.2f}x)"
    return f"{found['images_per_second']:.3g}{ratio}{mark}"


def _read(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The rows that are done.

    Raises:
        UsageError: they were measured with other settings, or elsewhere.
    """
    if not path.exists():
        return {}
    found = json.loads(path.read_text())
    here = machine()
    same = found["settings"] == settings and all(found["machine"][key] == here[key] for key in ("processor", "cores", "threads", "torch"))
    if not same:
        raise UsageError(f"{path} holds rows of other settings or of another machine.", hint="move it away, or choose another --output")
    rows: dict[str, Any] = found["rows"]
    return rows


def main(models: list[str], settings: dict[str, Any], output: Path) -> None:
    """Surveys what is not there yet; each row is on the disk before the next begins."""
    rows = _read(output, settings)
    for name in models:
        if name in rows:
            continue
        rows[name] = survey(name, settings)
        facts = {"settings": settings, "machine": machine(), "versions": versions(), "commit": commit(), "rows": rows}
        write_atomic(output, json.dumps(facts, indent=1) + "\n")
        print(f"{name}: {rows[name]['seconds']:.0f} s, {len(rows)} rows", flush=True)
    print(_table(rows, settings["batches"]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[*COMPANY, *(family.example for family in FAMILIES.values()), *MORE])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--quick", action="store_true", help="two rounds at batch 1 and 4: tries the script out, measures nothing")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--table", action="store_true", help="print what is in the results and stop")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    place = given.output or (Path("runs/survey-quick.json") if given.quick else Path(__file__).parent / "results" / "survey.json")
    chosen = {"batches": [1, 4], "rounds": 2, "warmup": 1, "budget_s": 30.0} if given.quick else {
        "batches": [1, 32], "rounds": 15, "warmup": 2, "budget_s": 90.0}  # fmt: skip
    if given.table:
        done = json.loads(place.read_text())
        print(_table(done["rows"], done["settings"]["batches"]))
    else:
        main(given.models, {**chosen, "threads": given.threads}, place)
