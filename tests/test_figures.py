"""Every figure in a README or a page of the docs is what the results files say: a script writes the pages, and this checks it."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_figures", ROOT / "eval/write_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_say_what_the_results_say(script: ModuleType) -> None:
    for page in script.PAGES:
        text = (ROOT / page).read_text()
        assert script.BLOCK.search(text), f"{page} has no block of figures"
        assert script.rendered(text) == text, f"{page}: run python eval/write_figures.py"


def test_a_changed_number_is_noticed(script: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    block = script.BLOCK.search(text[text.index("<!-- figures: bench -->") :])
    assert block is not None
    number = next(word for word in block[0].split() if word.replace(".", "").isdigit() and len(word) > 1)
    assert script.rendered(text.replace(block[0], block[0].replace(number, "12345"))) == text
