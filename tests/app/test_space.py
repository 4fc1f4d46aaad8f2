"""The folder of a Space, made from pyproject.toml, and the ways into the demo that load nothing heavy."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason="needs the extra app")

import yaml
from packaging.requirements import Requirement
from typer.testing import CliRunner

from vis_accel.cli import app as commands

ROOT = Path(__file__).resolve().parents[2]
SPACE = runpy.run_path(str(ROOT / "scripts" / "make_space.py"))


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("space") / "made"
    SPACE["make"](folder)
    return folder


def test_the_front_matter_is_what_the_platform_reads(space: Path) -> None:
    _, head, body = (space / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(head)
    assert found["sdk"] == "gradio"
    assert found["app_file"] == "app.py"
    assert (space / found["app_file"]).is_file()
    assert found["python_version"] == "3.12"
    assert len(found["short_description"]) <= 60
    assert found["sdk_version"].count(".") == 2
    assert str(found["license"]) == "apache-2.0"
    assert body.strip().startswith("# vis-accel")


def test_the_requirements_are_the_packages_own(space: Path) -> None:
    from importlib.metadata import version

    lines = [Requirement(line) for line in (space / "requirements.txt").read_text().splitlines()]
    names = {line.name for line in lines}
    assert {"torch", "diffusers", "timm", "python-multipart"} <= names
    assert "gradio" not in names  # the platform installs it, as the front matter says
    assert [line.name for line in lines if not line.specifier.contains(version(line.name), prereleases=True)] == []


def test_the_space_holds_the_whole_package(space: Path) -> None:
    there = {path.relative_to(space) for path in (space / "vis_accel").rglob("*") if path.is_file()}
    wanted = {path.relative_to(ROOT) for path in (ROOT / "vis_accel").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert there == wanted
    code = "import vis_accel.app, pathlib; print(pathlib.Path(vis_accel.app.__file__).parents[2])"
    done = subprocess.run([sys.executable, "-c", code], cwd=space, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()) == space


def test_the_ways_in_load_nothing_heavy() -> None:
    heavy = ("gradio", "torch", "pydantic", "diffusers")
    code = f"import vis_accel.app, vis_accel.cli, sys\nprint([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_the_command_says_its_limits() -> None:
    found = CliRunner().invoke(commands, ["app", "--help"])
    assert found.exit_code == 0
    for option in ("--host", "--port", "--share", "--auth", "--allow-model", "--max-images", "--max-steps", "--max-pixels", "--queue"):
        assert option in found.stdout


@pytest.mark.parametrize("content", ["", "nobody", "user:", ":secret"])
def test_a_password_file_without_a_password_is_refused(content: str, tmp_path: Path) -> None:
    from vis_accel.cli_app import _auth
    from vis_accel.errors import UsageError

    file = tmp_path / "auth"
    file.write_text(content)
    with pytest.raises(UsageError, match="must hold user:password"):
        _auth(file)
    file.write_text("user:pass:word\n")
    assert _auth(file) == ("user", "pass:word")
    with pytest.raises(UsageError, match="Cannot read"):
        _auth(tmp_path / "absent")
