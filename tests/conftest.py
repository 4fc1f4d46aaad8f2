"""What holds for all tests: nothing is read from the user's folder, and nothing is left there."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for what each test searches and calibrates."""
    folder = tmp_path_factory.mktemp("user", numbered=True)
    monkeypatch.setenv("VIS_ACCEL_CACHE", str(folder))
    return folder
