"""Writes every figure of the READMEs and the docs from the results files: nobody types a number.

python eval/write_figures.py            rewrites what lies between <!-- figures: NAME --> and <!-- /figures -->
python eval/write_figures.py --check    fails if a page does not say what the results say
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import figures_precision
import figures_students
import figures_vision

from vis_accel.files import write_atomic
from vis_accel.record import Card, Quantity, Record, undominated
from vis_accel.zoo import describe

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "samplers/README.md", "eval/README.md", "docs/diffusion.md", "docs/which-sampler.md", "docs/precision.md",
         "docs/distillation.md", "token_pruning/README.md", "vit_models/README.md")  # fmt: skip
BLOCK = re.compile(r"<!-- figures: ([a-z-]+) -->\n.*?<!-- /figures -->", re.DOTALL)


def rendered(text: str) -> str:
    """The page with every block written anew."""
    return BLOCK.sub(lambda found: f"<!-- figures: {found[1]} -->\n{FIGURES[found[1]]().strip()}\n<!-- /figures -->", text)


def bench_table() -> str:
    """The card of the README's first line."""
    card = Card.load(ROOT / "eval/results/default")
    base = card.baseline
    where = f"{base.machine['processor']}, {base.machine['cores']} cores, {base.settings['dtype']}, torch {base.machine['torch']}"
    floor = card.reference.get("floor")
    tail = f" The floor, {floor:.3g}, is what {base.n} held-out real images score." if isinstance(floor, float) else ""
    verdicts = [f"`{row.recipe}`: quality {row.verdict}" for row in card.records if row.verdict]
    command = "vis-accel bench --sampler dpm"
    lead = f"`{command}`: n = {base.n}, guidance {base.settings['guidance_scale']}, batch {base.settings['batch']} in the timing; {where}."
    return "\n\n".join([lead + tail, _table(card), *verdicts, "Rows in bold are beaten by no other row."])


def students() -> str:
    """The students of few calls that ship, beside solvers of as many calls and more."""
    return _students("eval/results/students")


def guidance_student() -> str:
    """The student that takes the guidance scale, beside the same sampler with both halves."""
    return _students("eval/results/guidance-student")


def _students(folder: str) -> str:
    card = Card.load(ROOT / folder)
    base = card.baseline
    recall = "; ".join(f"`{row.recipe}` {_short(row.quality.get('recall'))}" for row in card.rows)
    lead = (
        f"n = {base.n}, guidance {base.settings['guidance_scale']}, batch {base.settings['batch']} in the timing, "
        f"{base.machine['threads']} thread{'s' * (base.machine['threads'] > 1)} of {base.machine['processor']}, float32."
    )
    verdicts = [f"`{row.recipe}`: quality {row.verdict}" for row in card.records if row.verdict and "distilled" in row.recipe]
    unsteady = [f"`{row.recipe}`" for row in card.rows if any("deviation" in reason for reason in row.unstable)]
    if unsteady:
        verdicts.append(f"Times that spread by more than a tenth of their mean: {', '.join(unsteady)}.")
    return "\n\n".join([lead, _table(card), f"Recall: {recall}.", *verdicts])


def end_to_end() -> str:
    """Whole runs with everything on, and where their seconds go."""
    folder = ROOT / "eval/results/end-to-end"
    card, parts = Card.load(folder), json.loads((folder / "parts.json").read_text())
    base = card.baseline
    lead = (
        f"cifar10-dit, n = {base.n}, guidance {base.settings['guidance_scale']}, batch {base.settings['batch']} in the timing, "
        f"{base.machine['threads']} threads of {base.machine['processor']}; the baselines in float32."
    )
    told = [f"`{row.recipe}`: quality {row.verdict}" for row in card.records if row.verdict and row.recipe_form.get("methods")]
    combined = [f"- `{row.recipe}`: {note}." for row in card.records for note in row.notes if note.startswith("alone: ")]
    unsteady = [f"`{row.recipe}`" for row in card.records if row.recipe_form.get("methods") and row.unstable]
    if unsteady:
        told.append(f"The timing of {', '.join(unsteady)} is unstable by its own test (spread above a tenth of the mean, or few runs).")
    head = ["run", "seconds", "denoiser", "decoder", "the rest", "x stock"]
    rows = [head, ["---"] * len(head)]
    stock = parts["seconds"]["stock"]["whole"]
    for label, seconds in parts["seconds"].items():
        whole, rest = seconds["whole"], seconds["whole"] - seconds["denoiser"] - seconds["decoder"]
        shares = [f"{100 * part / whole:.0f}%" for part in (seconds["denoiser"], seconds["decoder"], rest)]
        rows.append([f"`{label}`" if label != "stock" else label, f"{whole:.3f}", *shares, f"{stock / whole:.1f}"])
    taken = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    recall = "; ".join(f"`{row.recipe}` {_short(row.quality.get('recall'))}" for row in card.rows)
    apart = f"Runs of {parts['batch']} images taken apart, medians of {parts['runs']}, one after the other (not interleaved):"
    return "\n\n".join([lead, _table(card), f"Recall: {recall}.", *told, "\n".join(combined), apart, taken])


def sampler_table() -> str:
    """The comparison of all solvers on all schedules, model by model."""
    parts = [_compared(_json(f"samplers/results/{path.name}")) for path in sorted((ROOT / "samplers/results").glob("compare-*.json"))]
    return "\n\n".join(parts) if parts else "Not measured yet."


def _compared(found: dict[str, Any]) -> str:
    """Of one model: the nearest three of each number of calls, then what was scored."""
    lines = [
        f"**`{found['model']}`**: root mean square difference from {found['teacher']} on {found['n']} seeds; the nearest row of each of "
        f"the nearest three solvers, of {len(found['rows'])} rows in all.",
        "| calls | nearest | second | third | DDIM's best |\n|---|---|---|---|---|",
    ]
    if not found["rows"]:
        lines = [f"**`{found['model']}`**, not screened."]
    for calls in sorted({row["calls"] for row in found["rows"]}):
        best = best_by_solver(found, calls)
        ddim = next((row for row in best if row["solver"] == "ddim"), None)
        cells = [*map(_nearness, best[:3]), _nearness(ddim) if ddim else "-"]
        lines[-1] += f"\n| {calls} | {' | '.join(cells)} |"
    if found["fid"]:
        first = found["fid"][0]
        lines.append(
            f"{found['measure']} of some rows, n = {first['n']:,}, floor {first['floor']:.3g}:\n\n"
            f"| recipe | calls | {found['measure']} | difference on equal seeds | quality |\n|---|---|---|---|---|"
        )
        for row in sorted(found["fid"], key=lambda row: (row["calls"], row["fid"])):
            judged = f"{row['difference']} | {row['verdict']}" if "verdict" in row else "- | the reference"
            lines[-1] += f"\n| `{_unnumbered(row['recipe'])}` | {row['calls']} | {row['interval']} | {judged} |"
    return "\n\n".join(lines)


def best_by_solver(found: dict[str, Any], calls: int) -> list[dict[str, Any]]:
    """The nearest row of each family of solvers at that number of calls, the nearest first."""
    best: dict[str, dict[str, Any]] = {}
    for row in sorted((row for row in found["rows"] if row["calls"] == calls), key=lambda row: float(row["error"])):
        best.setdefault(row["solver"].partition("(")[0], row)
    return list(best.values())


BANDS = ((4, 6), (8, 10), (15, 20))


def which_sampler() -> str:
    """In words: which solver and schedule come nearest in each band of calls, and how far DDIM is behind."""
    files = sorted((ROOT / "samplers/results").glob("compare-*.json"))
    screened = [found for found in (_json(f"samplers/results/{path.name}") for path in files) if found["rows"]]
    return "\n\n".join(_advice(found) for found in screened) if screened else "Not measured yet."


def _advice(found: dict[str, Any]) -> str:
    lines = [f"On `{found['model']}`, where 1 is the nearest row of that number of calls (mean over the calls of the band):"]
    head = "\n| calls | best solver and schedule | next solver | DDIM, its best schedule |\n|---|---|---|---|"
    body = ""
    for low, high in BANDS:
        ratios = _ratios(found, [calls for calls in sorted({row["calls"] for row in found["rows"]}) if low <= calls <= high])
        if not ratios:
            continue
        ranked = sorted(ratios.items(), key=lambda item: item[1])
        best = ranked[0]
        other = next((item for item in ranked if _family(item[0]) != _family(best[0])), best)
        ddim = min((item for item in ranked if _family(item[0]) == "ddim"), key=lambda item: item[1], default=None)
        cells = [f"`{solver}` {schedule}: {value:.2f}" for (solver, schedule), value in (best, other, *([ddim] if ddim else []))]
        body += f"\n| {low} to {high} | {' | '.join(cells)} |"
    return lines[0] + "\n" + head + body


def _family(row: tuple[str, str]) -> str:
    return row[0].partition("(")[0]


def _ratios(found: dict[str, Any], band: list[int]) -> dict[tuple[str, str], float]:
    """(solver, schedule) -> mean over the band of its error over the least one, for what was run at every number of calls of it."""
    least = {calls: min(row["error"] for row in found["rows"] if row["calls"] == calls) for calls in band}
    kept: dict[tuple[str, str], list[float]] = {}
    for row in found["rows"]:
        if row["calls"] in least:
            kept.setdefault((row["solver"], row["schedule"]), []).append(row["error"] / least[row["calls"]])
    return {key: sum(values) / len(values) for key, values in kept.items() if len(values) == len(band)}


def _nearness(row: dict[str, Any]) -> str:
    used = "" if row["used"] == row["calls"] else f", {row['used']} calls"
    return f"`{row['solver']}` {row['schedule']}{used}: {row['error']:.3g}"


def _unnumbered(recipe: str) -> str:
    """A recipe with its searched knots left out of print."""
    return re.sub(r"schedule=\([^)]*\)", "schedule=(searched)", recipe)


def overhead() -> str:
    """The cost of the stand-in scheduler."""
    found = _json("samplers/results/overhead.json")
    return (
        f"A step of the stand-in with `dpm` costs {found['step_ms']:.3f} ms, {found['share_of_a_call']:.2%} of a call of the bundled "
        f"network ({found['call_ms']:.1f} ms at {found['rows']} rows); diffusers' DPMSolverMultistepScheduler costs "
        f"{found['stock_step_ms']:.3f} ms. "
        f"By `python samplers/overhead.py`."
    )


def bundle() -> str:
    """What was found when the models were bundled."""
    features, dit = _json("eval/results/bundle-features.json"), _json("eval/results/bundle-dit.json")
    floors = ", ".join(f"{value:.3g} at n = {n}" for n, value in features["floor"].items())
    trip = dit["round trip"]
    lines = [
        f"`cifar10-features` is right on {features['top1']:.2%} of the 10,000 test images. Floor (held-out real images): {floors}.",
        f"The autoencoder of `cifar10-dit` alone: {trip['psnr']:.1f} dB and FID {trip['fid']:.3g} on the {trip['n']:,} test images. "
        f"Guidance and spacing were chosen by the runs of n = {dit['guidance'][0]['n']}{_scan(dit)}.",
        "| what | n | FID[cifar10-features] | class agreement | precision | recall |\n|---|---|---|---|---|---|",
    ]
    rows = [(f"guidance {row['guidance_scale']:g}, {row['recipe']}", row) for row in dit["guidance"]]
    rows += [(f"{row['spacing']} spacing, DDIM 50 steps", row) for row in dit["spacing"]]
    pinned = describe("cifar10-dit").job["guidance_scale"]
    scored = {name: row for name, row in dit.items() if isinstance(row, dict) and "class agreement" in row}
    rows += [(f"guidance {pinned:g}, {name}", row) for name, row in scored.items()]
    unet = _json("eval/results/bundle-unet.json") if (ROOT / "eval/results/bundle-unet.json").exists() else {}
    rows += [(f"`cifar10-unet`, {name}", row) for name, row in unet.items() if isinstance(row, dict) and "fid" in row]
    for name, row in rows:
        scores = " | ".join(f"{row[key]:.3f}" if key in row else "-" for key in ("class agreement", "precision", "recall"))
        lines[-1] += f"\n| {name} | {row['n']} | {row['interval']} | {scores} |"
    if (ROOT / "eval/results/bundle-vit.json").exists():
        vit = _json("eval/results/bundle-vit.json")
        lines.append(
            f"`cifar10-vit` is right on {vit['top1']:.2%} of the 10,000 test images, with {vit['parameters'] / 1e6:.2f} M parameters."
        )
    return "\n\n".join(lines)


def _scan(dit: dict[str, Any]) -> str:
    now = json.loads((ROOT / "vis_accel/zoo/models/cifar10-features/card.json").read_text())["files"]["model.safetensors"]
    return "" if dit.get("scanned with") == now else ", which an earlier version of the feature network scored"


def second_opinion() -> str:
    """Two feature networks, one ranking?"""
    path = ROOT / "eval/results/second-opinion.json"
    if not path.exists():
        return "Not measured yet."
    found = json.loads(path.read_text())
    nets = found["networks"]
    head = " | ".join(f"FID[{name}], top-1 {judged['top1']:.1%}" for name, judged in nets.items())
    samplers = next(iter(nets.values()))["samplers"]
    rows = "\n".join(f"| `{name}` | {' | '.join(judged['samplers'][name]['interval'] for judged in nets.values())} |" for name in samplers)
    lead = f"n = {found['n']}; Kendall's tau of the two rankings: {found['kendall tau']:.2f}. By `python eval/second_opinion.py`."
    return f"{lead}\n\n| sampler | {head} |\n|---|{'---|' * len(nets)}\n{rows}"


def picture() -> str:
    """The card's picture."""
    return "![quality against speed, and the same seeds under each row](docs/card.png)\n\nThe card of `vis-accel bench --sampler dpm`."


FIGURES: dict[str, Callable[[], str]] = {
    "bench": bench_table, "samplers": sampler_table, "overhead": overhead, "bundle": bundle, "picture": picture, "students": students,
    "end-to-end": end_to_end,
    "guidance-student": guidance_student,
    "second-opinion": second_opinion, "which-sampler": which_sampler, **figures_vision.FIGURES,
    **figures_precision.FIGURES,
    **figures_students.FIGURES,
}  # fmt: skip


def _table(card: Card) -> str:
    fid = next((name for name in card.baseline.quality if name.startswith("FID")), "KID")
    stock = [card.baseline.recipe, *(row.recipe for row in card.records if not row.recipe_form.get("methods"))]
    head = ["", "calls", "NFE", fid, "class agreement", "images/s", *(f"x {name}" for name in stock), "peak MB"]
    best = [id(row) for row in undominated(card.rows)]
    lines = [head, ["---"] * len(head)]
    for row in card.rows:
        name = f"**{row.recipe}**" if id(row) in best else row.recipe
        ratios = [_short(row.speed.ratios.get(base)) if row.speed else "-" for base in stock]
        scores = [_short(row.quality.get(score)) for score in (fid, "class agreement")]
        speed = [_short(row.speed.images_per_second if row.speed else None), *ratios]
        memory = f"{(row.peak_memory_bytes or 0) / 2**20:.0f}"
        lines.append([name, _count(row, "calls"), _count(row, "nfe"), *scores, *speed, memory])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(quantity: Quantity | None) -> str:
    if quantity is None or quantity.value is None:
        return "-"
    ends = "" if quantity.low is None or quantity.high is None else f" [{quantity.low:.3g}, {quantity.high:.3g}]"
    return f"{quantity.value:.3g}{ends}"


def _count(row: Record, name: str) -> str:
    value = row.counters.get(name)
    return "-" if value is None else f"{value:g}"


def _json(path: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / path).read_text())
    return found


def main(check: bool) -> int:
    """Writes, or compares; the number of pages that differ."""
    different = 0
    for page in PAGES:
        text = (ROOT / page).read_text()
        new = rendered(text)
        different += new != text
        if not check and new != text:
            write_atomic(ROOT / page, new)
        print(f"{page}: {'as the results say' if new == text else 'differs' if check else 'written'}")
    return different if check else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    sys.exit(main(parser.parse_args().check))
