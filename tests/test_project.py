"""The project around the library: what its pages promise, and the laws of its layout."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from setuptools import find_packages

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKBENCHES = ("samplers", "vit_models", "token_pruning", "eval")
SOURCES = sorted((ROOT / "vis_accel").rglob("*.py"))
PAGES = [path for folder in (".", "docs", *WORKBENCHES) for path in sorted((ROOT / folder).glob("*.md"))]
SET_UP = ("pip install -e . && vis-accel bench --sampler dpm", "pip install -e '.[dev]' && pytest")


def code_lines(text: str) -> list[str]:
    """The lines inside fenced blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def test_the_readme_has_the_two_set_up_lines_and_no_rival() -> None:
    lines = [line for line in code_lines((ROOT / "README.md").read_text()) if line.startswith("pip install -e")]
    assert lines == list(SET_UP)


def test_ci_runs_the_line_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert f'''grep -m1 -F "{SET_UP[1]}" README.md''' in script
    assert 'bash -euo pipefail -c "$line"' in script


def test_the_newest_change_is_of_this_version() -> None:
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert headings[0] == PROJECT["project"]["version"]
    assert f"version: {headings[0]}\n" in (ROOT / "CITATION.cff").read_text()


def test_imports_go_downwards() -> None:
    found = subprocess.run(["lint-imports", "--no-cache"], cwd=ROOT, env=_environment(), capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def _environment() -> dict[str, str]:
    """The tools of the interpreter that runs the tests, whether or not its environment is activated."""
    import os

    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}


def test_the_floors_name_modules_that_exist_or_say_that_they_may_not() -> None:
    layers = PROJECT["tool"]["importlinter"]["contracts"][0]["layers"]
    names = [name.strip() for layer in layers for name in re.split("[:|]", layer)]
    needed = [name for name in names if not name.startswith("(")]
    assert [name for name in needed if not list((ROOT / "vis_accel").glob(f"{name}*"))] == []
    known = {name.strip("()") for name in names}
    modules = {path.relative_to(ROOT / "vis_accel").parts[0].removesuffix(".py") for path in SOURCES} - {"__init__"}
    assert sorted(modules - known) == [], "a module without a floor"


@pytest.mark.parametrize("name", WORKBENCHES)
def test_a_workbench_is_a_folder_with_a_page_and_no_package(name: str) -> None:
    assert (ROOT / name / "README.md").is_file()
    assert not list((ROOT / name).rglob("__init__.py"))


def test_a_script_of_a_workbench_imports_the_library_by_its_public_names() -> None:
    """No script of one workbench imports another one: each runs from anywhere."""
    scripts = [path for name in WORKBENCHES for path in (ROOT / name).rglob("*.py")]
    assert [(path.name, name) for path in scripts for name in imported(path) if name.split(".")[0] in WORKBENCHES] == []


@pytest.mark.parametrize("name", WORKBENCHES)
def test_every_script_of_a_workbench_finds_what_it_imports(name: str) -> None:
    """A module that had moved was still imported from its old place by a script that no test ran."""
    scripts = sorted(str(path) for path in (ROOT / name).glob("*.py"))
    program = "import runpy, sys\nsys.path.insert(0, sys.argv[1])\nfor path in sys.argv[2:]: runpy.run_path(path, run_name='imported')"
    done = subprocess.run([sys.executable, "-c", program, str(ROOT / name), *scripts], capture_output=True, text=True, timeout=300)
    assert scripts
    assert done.returncode == 0, done.stderr


def test_the_wheel_has_one_top_level_name() -> None:
    options = PROJECT["tool"]["setuptools"]["packages"]["find"]
    found = find_packages(str(ROOT), include=options["include"])
    assert {name.split(".")[0] for name in found} == {"vis_accel"}
    modules = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in SOURCES}
    assert modules == set(found), "a folder of modules without __init__.py stays out of the wheel"


def imported(path: Path) -> list[str]:
    """The full names a file imports, at any depth of its code."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_library_imports_no_workbench_and_nothing_relative(path: Path) -> None:
    assert [name for name in imported(path) if name.split(".")[0] in (*WORKBENCHES, "app", "tests", "scripts")] == []
    assert not [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom) and node.level]


UNPICKLERS = ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pandas")
LOADERS = {"torch.load", "torch.jit.load", "torch.package.PackageImporter", "torch.hub.load", "torch.hub.load_state_dict_from_url"}


def unpickling(source: str) -> list[str]:
    """What in a module's text reads pickles or runs text: unpicklers, PyTorch's loaders, numpy's `allow_pickle`, `eval`, `exec`.

    Names are followed through `import a.b as c` and `from a import b as c`.
    """
    tree, aliases, found = ast.parse(source), dict[str, str](), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [(alias.asname, alias.name) for alias in node.names]
            aliases |= {given or name.split(".")[0]: name if given else name.split(".")[0] for given, name in names}
            found += [alias.name for alias in node.names if alias.name.split(".")[0] in UNPICKLERS]
        elif isinstance(node, ast.ImportFrom) and node.module:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found += [node.module] if node.module.split(".")[0] in UNPICKLERS else []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Name)) and isinstance(node.ctx, ast.Load):
            name = _dotted(node, aliases)
            found += [name] if name in LOADERS or name in ("eval", "exec") else []
        if isinstance(node, ast.Call) and _dotted(node.func, aliases) == "numpy.load":
            asked = [word.value for word in node.keywords if word.arg == "allow_pickle"]
            found += ["numpy.load(allow_pickle)" for value in asked if not (isinstance(value, ast.Constant) and value.value is False)]
    return found


def _dotted(node: ast.AST, aliases: dict[str, str]) -> str:
    if isinstance(node, ast.Name):
        return aliases.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        base = _dotted(node.value, aliases)
        return f"{base}.{node.attr}" if base else ""
    return ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_unpickles(path: Path) -> None:
    assert unpickling(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import torch\ntorch.load('x')",
        "from torch import load as safe\nsafe('x')",
        "import torch as t\nread = t.load",
        "import torch.hub\ntorch.hub.load('a', 'b')",
        "import numpy as np\nnp.load('x', allow_pickle=True)",
        "import numpy as np\nflag = False\nnp.load('x', allow_pickle=flag)",
        "eval('1')",
    ],
)
def test_the_search_for_unpickling_finds_it(source: str) -> None:
    assert unpickling(source)


@pytest.mark.parametrize(
    "source", ["import numpy as np\nnp.load('x')", "from safetensors.torch import load", "def f(eval): return 1", "self.load()"]
)
def test_the_search_for_unpickling_leaves_the_rest_alone(source: str) -> None:
    assert not unpickling(source)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("https://", "mailto:"))]
    assert [link for link in links if not _leads(page, link)] == []


def _leads(page: Path, link: str) -> bool:
    place, _, anchor = link.partition("#")
    target = page.parent / place if place else page
    if not target.exists() or not target.resolve().is_relative_to(ROOT):
        return False
    headings = re.findall(r"^#+ (.+)$", target.read_text(), flags=re.MULTILINE) if anchor else []
    return not anchor or anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_extra_that_an_error_offers_exists() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    offered = {name for path in SOURCES for names in re.findall(r"vis-accel\[([\w,]+)\]", path.read_text()) for name in names.split(",")}
    assert offered <= extras


def test_everything_is_a_part_of_all() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    (everything,) = extras["all"]
    assert set(everything.removeprefix("vis-accel[").removesuffix("]").split(",")) == set(extras) - {"all", "cuda"}


def test_floors_only() -> None:
    groups = [PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"].values()]
    assert [line for group in groups for line in group if not re.fullmatch(r"[\w\-]+(>=[\d.]+|\[[\w,]+\])(; .*)?", line)] == []


@pytest.mark.parametrize("name", [".ci/run", "scripts/check"])
def test_scripts_run_and_stop_at_the_first_failure(name: str) -> None:
    path = ROOT / name
    assert path.stat().st_mode & 0o111
    assert "\nset -euo pipefail\n" in path.read_text()
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0


def guarded(code: str, log: Path) -> subprocess.CompletedProcess[str]:
    """Runs `code` with the network shut, as .ci/run shuts it."""
    environment = {**_environment(), "PYTHONPATH": str(ROOT / "scripts" / "no_network"), "NO_NETWORK_LOG": str(log)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('192.0.2.1', 80), timeout=1)",
        "import socket; socket.getaddrinfo('example.invalid', 443)",
        "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    ],
)
def test_the_shut_network_stops_and_notes_attempts(code: str, tmp_path: Path) -> None:
    log = tmp_path / "attempts"
    run = guarded(f"try:\n    {code}\nexcept OSError as error:\n    print(error)", log)
    assert "the network is shut" in run.stdout
    assert "socket." in log.read_text()


def test_the_shut_network_leaves_this_machine_open(tmp_path: Path) -> None:
    code = (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "socket.create_connection(('localhost', server.getsockname()[1])).close()\n"
        "print('open')\n"
    )
    run = guarded(code, tmp_path / "attempts")
    assert run.stdout == "open\n", run.stderr
    assert not (tmp_path / "attempts").exists()
