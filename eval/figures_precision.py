"""The tables of docs/precision.md, from eval/results/precision.json and precision-quality.json."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def precision_table() -> str:
    """One call of each target, row by row, with the ceilings of the machine."""
    path = RESULTS / "precision.json"
    if not path.is_file():
        return "Not measured yet."
    return "\n\n".join(_target(found) for found in json.loads(path.read_text())["targets"].values())


def _target(found: dict[str, Any]) -> str:
    head = ["recipe", "ms", "x float32 eager", "x best bf16", "share of ceiling", "SNR, dB", "first call, s", "timing unstable"]
    rows = []
    for label, row in sorted(found["rows"].items(), key=lambda item: -item[1].get("seconds", 0)):
        name = f"`{label}`" if " eager" not in label and "all in" not in label else label
        if "error" in row:
            rows.append([name, f"failed: {row['error']}", *[""] * 6])
            continue
        snr = "" if row.get("snr_db") is None else f"{row['snr_db']:.0f}"
        first = f"{row['first_call_s']:.1f}" if "first_call_s" in row else ""
        rows.append([
            name, f"{row['seconds'] * 1e3:.0f}", _ratio(row["over_float32_eager"]), _ratio(row["over_best_bf16"]),
            f"{100 * row['share_of_ceiling']:.0f}%", snr, first, "yes" if row["unstable"] else "",
        ])  # fmt: skip
    ceilings = "; ".join(f"{name} {value:.0f}" for name, value in found["ceilings_gflops"].items())
    machine = f"{found['machine']['processor']}, {found['threads']} threads"
    lead = f"**{found['what']}** ({found['gmacs']:.1f} GMACs; {machine}). Ceilings in GFLOP/s, timed in the same run: {ceilings}."
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
    return f"{lead}\n\n{table}"


def _ratio(interval: dict[str, Any]) -> str:
    return f"{interval['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def quality_table() -> str:
    """The bundled pipelines in fewer bits against float32, the sampler the same."""
    path = RESULTS / "precision-quality.json"
    if not path.is_file():
        return "Not measured yet."
    parts = []
    for model, found in json.loads(path.read_text()).items():
        name = next(
            name for row in found["rows"].values() for name in row["quality"] if name.startswith("FID") and "difference" not in name
        )
        psnr = next((key for row in found["rows"].values() for key in row["quality"] if key.startswith("PSNR")), "PSNR")
        head = ["recipe", name, "difference to float32", psnr + ", dB", "verdict"]
        rows = []
        for label, row in found["rows"].items():
            quality = row["quality"]
            cells = [_interval(quality.get(key)) for key in (name, f"{name} difference", psnr)]
            rows.append([f"`{label}`", *cells, row.get("verdict", "the reference").split(":")[0]])
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
        guidance = found["job"]["guidance_scale"]
        told = "" if guidance is None else f", guidance {guidance}"
        parts.append(f"**`{model}`**, n = {found['n']}{told}; the floor of as many real images is {found['floor']:.3g}.\n\n{table}")
    return "\n\n".join(parts)


def calibration_table() -> str:
    """The error of a call of the run under each form of calibration and rounding, on the inputs of the float32 run."""
    path = RESULTS / "q-diffusion.json"
    if not path.is_file():
        return "Not measured yet."
    parts = []
    for model, found in json.loads(path.read_text()).items():
        head = ["recipe", "worst call, dB", "which", "all calls, dB"]
        rows = []
        for label, row in found["rows"].items():
            values = [call["value"] for call in row["calls"]]
            worst = row["worst"]
            mark = f"{worst['value']:.1f} [{worst['low']:.1f}, {worst['high']:.1f}]"
            recipe, _, rest = label.partition("), calibrated")
            name = f"`{recipe})`, calibrated{rest}" if rest else f"`{label}`"
            rows.append([name, mark, f"{worst['call'] + 1} of {len(values)}", f"{min(values):.1f} .. {max(values):.1f}"])
        table = "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))
        parts.append(f"**`{model}`**, `{found['sampler']}`, {found['images']} images.\n\n{table}")
        for bits, layers in found["shortcuts"].items():
            better = sum(errors["split"] < errors["whole"] for errors in layers.values())
            gain = 10 * math.log10(sum(e["whole"] for e in layers.values()) / sum(e["split"] for e in layers.values()))
            parts.append(
                f"Shortcuts of {model} at `{bits}`: split errs less in {better} of {len(layers)} layers, {gain:.1f} dB less in all."
            )
    return "\n\n".join(parts)


def _interval(found: dict[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "-"
    ends = "" if found["low"] is None else f" [{found['low']:.3g}, {found['high']:.3g}]"
    return f"{found['value']:.3g}{ends}"


FIGURES = {"precision": precision_table, "calibration": calibration_table, "precision-quality": quality_table}
