"""`doctor`: what works, what is missing and what to type; a broken part is one line, never a traceback."""

from __future__ import annotations

import json

import pytest

from vis_accel import doctor
from vis_accel.doctor import Finding, table


def test_a_required_part_that_fails_is_broken_and_an_absent_option_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> str:
        raise RuntimeError("first line\nsecond line")

    def absent() -> str:
        raise ModuleNotFoundError("No module named 'openvino'")

    assert doctor._required("torch", broken) == Finding("torch", "broken", "RuntimeError: first line", "pip install -U vis-accel")
    found = doctor._optional("openvino", absent, "pip install 'vis-accel[openvino]'")
    assert found.state == "missing"
    assert found.mend == "pip install 'vis-accel[openvino]'"
    assert doctor._optional("peft", broken, "x").state == "broken"
    assert doctor._optional("python", lambda: "3.12", "x").mend is None


def test_the_machine_is_described_and_a_product_is_computed() -> None:
    assert "threads" in doctor._torch()
    assert "cores" in doctor._machine()


def test_tables_name_everything_and_the_line_to_type() -> None:
    findings = [Finding("torch", "ok", "2.15"), Finding("gradio", "missing", "No module named 'gradio'", "pip install 'vis-accel[app]'")]
    text = table(findings)
    assert text.splitlines()[0].split() == ["torch", "ok", "2.15"]
    assert "pip install 'vis-accel[app]'" in text
    assert "pip install" not in table(findings, "quiet")
    assert json.loads(table(findings, "json"))[1]["mend"] == "pip install 'vis-accel[app]'"


def test_every_extra_that_a_hint_names_exists() -> None:
    """A hint printed by us is code: each `vis-accel[x]` must be an extra of pyproject.toml."""
    import re
    from pathlib import Path

    root = Path(__file__).resolve().parents[1]
    pyproject = (root / "pyproject.toml").read_text()
    section = pyproject[pyproject.index("[project.optional-dependencies]") : pyproject.index("[project.scripts]")]
    extras = set(re.findall(r"^(\w+) = \[", section, re.MULTILINE))
    named = {name for path in (root / "vis_accel").rglob("*.py") for name in re.findall(r"vis-accel\[(\w+)\]", path.read_text())}
    assert named
    assert named <= extras, named - extras
