"""The table of a student of exactly N steps beside solvers of more calls, from eval/results/student-quality.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "student-quality.json"


def table() -> str:
    """FID, recall, the student's difference to each rival, and how many times faster it is."""
    if not RESULTS.is_file():
        return "Not measured yet."
    found = json.loads(RESULTS.read_text())
    fid = next(name for name in next(iter(found["rows"].values()))["quality"] if name.startswith("FID"))
    head = ["recipe", fid, "recall", "student minus this", "student is", "student, times as fast"]
    lines = [head, ["---"] * len(head)]
    for recipe, row in found["rows"].items():
        quality = row["quality"]
        beside = [_short(row["student"][f"{fid} difference"]), row["verdict"].partition(":")[0]] if "student" in row else ["-", "-"]
        speed = _short(found["speed"][recipe]) if recipe in found["speed"] else "-"
        lines.append([f"`{recipe}`", _short(quality[fid]), _short(quality["recall"]), *beside, speed])
    lead = (
        f"{found['model']}, n = {found['n']}, {found['reference']}; the floor of as many real images is {found['floor']:.3g}. "
        f"Speed: median, least and largest of whole runs, interleaved, threads: {found['machine']['threads']}, "
        f"{found['machine']['processor']}."
    )
    return lead + "\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _short(value: dict[str, Any]) -> str:
    ends = "" if value["low"] is None else f" [{value['low']:.3g}, {value['high']:.3g}]"
    return f"{value['value']:.3g}{ends}"


FIGURES: dict[str, Callable[[], str]] = {"unet-student": table}
