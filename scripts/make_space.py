"""Makes the folder of a Hugging Face Space: its front matter and requirements from pyproject.toml, the package, and app.py.

python scripts/make_space.py OUTPUT
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "3.12"  # a Space's own default is older than the newest diffusers allows


def front_matter(project: dict[str, Any]) -> dict[str, Any]:
    """What the platform reads: Gradio's floor is the version it installs."""
    floor = next(line for line in project["optional-dependencies"]["app"] if line.startswith("gradio>="))
    version = floor.partition(">=")[2]
    return {
        "title": project["name"],
        "emoji": "⏱️",
        "colorFrom": "green",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": version if version.count(".") == 2 else f"{version}.0",
        "python_version": PYTHON,
        "app_file": "app.py",
        "license": project["license"].lower(),
        "short_description": "Speed against quality of diffusion and ViTs"[:60],
        "suggested_hardware": "cpu-basic",
        "startup_duration_timeout": "5m",
        "tags": ["diffusion", "vision-transformer", "acceleration"],
    }


def requirements(project: dict[str, Any]) -> list[str]:
    """The package's dependencies and those of the demo; Gradio itself is the platform's."""
    return [*project["dependencies"], *(line for line in project["optional-dependencies"]["app"] if not line.startswith("gradio"))]


def readme(project: dict[str, Any]) -> str:
    """README.md of the Space."""
    lines = [f"{key}: {_yaml(value)}" for key, value in front_matter(project).items()]
    return "\n".join(["---", *lines, "---", "", f"# {project['name']}", "", f"{project['description']}.", ""])


def _yaml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_yaml, value)) + "]"
    return f'"{value}"' if not re.fullmatch(r"[a-z][\w.\-]*", str(value)) else str(value)


def make(output: Path) -> None:
    """Writes the folder; one that is there is refused."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    output.mkdir(parents=True)
    (output / "README.md").write_text(readme(project))
    (output / "requirements.txt").write_text("\n".join(requirements(project)) + "\n")
    shutil.copy(ROOT / "app.py", output)
    shutil.copy(ROOT / "LICENSE", output)
    shutil.copytree(ROOT / "vis_accel", output / "vis_accel", ignore=shutil.ignore_patterns("__pycache__"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    make(parser.parse_args().output)
