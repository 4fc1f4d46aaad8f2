"""What a built wheel must be: one top-level name, small enough, typed, with every bundled model and nothing else.

python scripts/check_wheel.py dist/vis_accel-0.1.0-py3-none-any.whl
"""

from __future__ import annotations

import hashlib
import json
import sys
import zipfile
from pathlib import Path

MOST_BYTES = 95_000_000  # PyPI refuses files above 100 MB
MODELS = "vis_accel/zoo/models/"
REQUIRED = ("vis_accel/__init__.py", "vis_accel/__main__.py", "vis_accel/py.typed")
SOURCE = Path(__file__).resolve().parent.parent


def faults(path: Path) -> list[str]:
    """What is wrong with the wheel at `path`, in words; empty if nothing is."""
    found = []
    if path.stat().st_size >= MOST_BYTES:
        found.append(f"it has {path.stat().st_size / 1e6:.1f} MB; the limit is {MOST_BYTES / 1e6:.0f}")
    with zipfile.ZipFile(path) as wheel:
        names = [name for name in wheel.namelist() if not name.endswith("/")]
        top = {name.split("/", 1)[0] for name in names if ".dist-info/" not in name}
        if top != {"vis_accel"}:
            found.append(f"its top-level names are {', '.join(sorted(top))}; the only one must be vis_accel")
        found += [f"{name} is missing" for name in REQUIRED if name not in names]
        if not any(name.endswith(".dist-info/licenses/LICENSE") for name in names):
            found.append("the licence is missing")
        found += _code(names)
        found += _models(wheel, names)
    return found


def _code(names: list[str]) -> list[str]:
    """A stale build folder leaves modules in a wheel that the source no longer has; a wrong configuration leaves some out."""
    here = {path.relative_to(SOURCE).as_posix() for path in (SOURCE / "vis_accel").rglob("*.py")}
    there = {name for name in names if name.startswith("vis_accel/") and name.endswith(".py")}
    stale = [f"{name} is not in the source" for name in sorted(there - here)]
    return [f"{name} is not in the wheel" for name in sorted(here - there)] + stale


def _models(wheel: zipfile.ZipFile, names: list[str]) -> list[str]:
    """Every model's card vouches for its files by sha256: all must be there, unchanged, and no others."""
    found = []
    cards = [name for name in names if name.startswith(MODELS) and name.count("/") == 4 and name.endswith("/card.json")]
    source = {path.parent.name for path in (SOURCE / MODELS).glob("*/card.json")}
    if not cards:
        found.append("it has no bundled model")
    found += [f"the model {name} is missing" for name in sorted(source - {card.split("/")[3] for card in cards})]
    for card in cards:
        folder = card.removesuffix("card.json")
        files: dict[str, str] = json.loads(wheel.read(card))["files"]
        there = {name.removeprefix(folder) for name in names if name.startswith(folder)} - {"card.json"}
        found += [f"{folder}{name} is not listed in its card" for name in sorted(there - set(files))]
        for name, digest in sorted(files.items()):
            if name not in there:
                found.append(f"{folder}{name} is missing")
            elif hashlib.sha256(wheel.read(folder + name)).hexdigest() != digest:
                found.append(f"{folder}{name} is not the file its card vouches for")
    return found


def main(arguments: list[str]) -> int:
    """Prints what was found; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python scripts/check_wheel.py WHEEL", file=sys.stderr)
        return 2
    path = Path(arguments[0])
    found = faults(path)
    for fault in found:
        print(f"{path.name}: {fault}", file=sys.stderr)
    if not found:
        print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB, in order")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
