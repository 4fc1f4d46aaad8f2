"""Exports models in both forms, each file compared with its network, and writes what was found beside the files.

    python vit_models/export.py --output runs/exported                             the example of every edge family, random weights
    python vit_models/export.py --output runs/exported --models cifar10-vit --dynamic-batch

One model is `vis-accel export` on the command line. The files go to the folder given, and are not kept in this repository.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from vis_accel import RunError, UsageError, load
from vis_accel.exporting import FORMATS, export
from vis_accel.files import write_atomic
from vis_accel.vit_models.families import FAMILIES, register
from vis_accel.zoo.bundled import MODELS


def main(models: list[str], output: Path, batch: int, dynamic_batch: bool) -> None:
    """Exports each model in each form; what cannot be exported is said and recorded."""
    report: list[dict[str, object]] = []
    for name in models:
        bundled = name in MODELS
        register(name)
        network = load(name if bundled else f"timm/{name}", random_weights=not bundled)
        for form, suffix in FORMATS.items():
            path = output / f"{name}{suffix}"
            try:
                found = asdict(export(network, path, format=form, batch=batch, dynamic_batch=dynamic_batch))
                print(
                    f"{path}  {found['bytes'] / 1e6:.1f} MB  logits within {found['difference']:.1e}  {found['seconds']:.0f} s", flush=True
                )
            except (RunError, UsageError) as error:
                found = {"error": str(error)}
                print(f"{path}  {error}", flush=True)
            report.append({"name": name, "format": form, **found})
            write_atomic(output / "report.json", json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[family.example for family in FAMILIES.values()])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dynamic-batch", action="store_true")
    arguments = parser.parse_args()
    main(arguments.models, arguments.output, arguments.batch, arguments.dynamic_batch)
