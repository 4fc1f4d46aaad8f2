"""The facts of the machine are plain values, and the commit is our own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vis_accel import machine


def test_the_facts_are_plain_and_true() -> None:
    facts = machine.machine()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == str(torch.__version__)
    assert facts["threads"] == torch.get_num_threads()
    assert facts["isa"] == torch.backends.cpu.get_cpu_capability()
    assert isinstance(facts["cores"], int)


def test_without_torch_its_facts_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    facts = machine.machine()
    assert facts["torch"] is facts["isa"] is facts["threads"] is None
    assert facts["python"]


def test_versions_name_what_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    assert list(machine.versions()) == ["torch"]


def test_the_commit_says_if_files_differ(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false", "-c", "core.hooksPath=/dev/null"]
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    assert machine.commit(tmp_path) is None
    git("init", "-q")
    assert machine.commit(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-q", "-m", "one")
    head = git("rev-parse", "HEAD")
    assert machine.commit(tmp_path) == head
    (tmp_path / "untracked").write_text("1")
    assert machine.commit(tmp_path) == head
    (tmp_path / "a").write_text("2")
    assert machine.commit(tmp_path) == head + "+changes"
    (tmp_path / "inner").mkdir()
    assert machine.commit(tmp_path / "inner") is None
