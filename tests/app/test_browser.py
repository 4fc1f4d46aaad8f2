"""The page in a real browser, where playwright and a Chromium are installed (apt-get install chromium, pip install playwright).

VIS_ACCEL_SCREENSHOTS=DIR keeps the pictures that are taken on the way.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="needs the extra app")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a Chromium")
WAIT = 90_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync"],
        )
        yield found
        found.close()


class Visit:
    """A visitor's page, and what went wrong on it."""

    def __init__(self, browser: Any, url: str, width: int = 1280, scheme: str = "light") -> None:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page, self.url = context.new_page(), url
        self.strangers: list[str] = []
        self.page.on(
            "request", lambda request: None if request.url.startswith((url, "data:", "blob:")) else self.strangers.append(request.url)
        )
        self.page.set_default_timeout(WAIT)

    def open(self, query: str = "") -> Any:
        self.page.goto(f"{self.url}/{query}")
        self.page.get_by_role("button", name="Generate", exact=True).wait_for()
        self.page.wait_for_timeout(1500)
        return self.page

    def keep(self, name: str) -> None:
        if folder := os.environ.get("VIS_ACCEL_SCREENSHOTS"):
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_generate_and_compare(browser: Any, server: Any, width: int, scheme: str) -> None:
    visit = Visit(browser, server.url, width, scheme)
    page = visit.open()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator(".va-numbers").first.wait_for()
    assert page.locator(".va-tiles img").count() == 8  # with the recipe, and as the model comes
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    visit.keep(f"generate-{width}")
    page.get_by_role("tab", name="Compare").click()
    page.get_by_role("button", name="Compare", exact=True).click()
    page.get_by_text("Difference: black is none").wait_for()
    assert page.locator(".va-tiles img:visible").count() == 12
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    visit.keep(f"compare-{width}")
    assert visit.strangers == []


def test_stop_ends_it(browser: Any, server: Any) -> None:
    page = Visit(browser, server.url).open()
    many = page.get_by_role("spinbutton", name="number input for How many").first
    many.fill("8")  # long enough to be stopped
    many.press("Tab")
    page.get_by_label("As the model comes").first.click()
    page.get_by_text("As the model comes: 50 steps.").first.wait_for()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.get_by_text(re.compile(r"Call \d+ of 50")).first.wait_for()
    page.get_by_role("button", name="Stop").first.click(force=True)  # without waiting for two still frames: the run goes on meanwhile
    page.get_by_text("Stopped.").first.wait_for()
    page.get_by_role("button", name="Generate", exact=True).click()
    page.locator(".va-numbers").first.wait_for()


def test_controls_write_the_recipe_and_the_recipe_sets_the_controls(browser: Any, server: Any) -> None:
    page = Visit(browser, server.url).open()
    steps = page.get_by_role("spinbutton", name="number input for Steps").first
    steps.fill("7")
    steps.press("Tab")
    recipe = page.get_by_label("Recipe").first
    playwright.expect(recipe).to_have_value("dpm(steps=7)", timeout=WAIT)
    recipe.fill("unipc(steps=5)")  # as a paste: what follows it is leaving the field
    recipe.press("Tab")
    playwright.expect(steps).to_have_value("5", timeout=WAIT)
    recipe.press("End")
    recipe.press("Backspace")
    recipe.press("Tab")
    page.locator(".va-bad:visible").first.wait_for()


def test_a_link_opens_its_settings(browser: Any, server: Any) -> None:
    page = Visit(browser, server.url).open(
        "?tab=compare&model=cifar10-dit&seed=5&count=2&first=ddim%28steps%3D9%29&second=heun%28steps%3D3%29"
    )
    playwright.expect(page.get_by_label("Second recipe").last).to_have_value("heun(steps=3)", timeout=WAIT)
    assert page.get_by_role("tab", name="Compare").get_attribute("aria-selected") == "true"


def test_classify_by_keyboard_and_a_bomb(browser: Any, server: Any, tmp_path: Path) -> None:
    visit = Visit(browser, server.url)
    page = visit.open()
    page.get_by_role("tab", name="Classify").click()
    page.get_by_role("button", name="Sample 4").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Classify", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_text("Where it left, and why").wait_for()
    assert page.locator(".va-bars").count() == 2
    visit.keep("classify-1280")

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(bomb + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b""))
    page = visit.open()
    page.get_by_role("tab", name="Classify").click()
    page.locator("input[type=file]:not([accept='.json'])").first.set_input_files(tmp_path / "bomb.png")
    page.wait_for_timeout(1500)
    page.get_by_role("button", name="Classify", exact=True).click()
    page.get_by_text("4,000,000 pixels").first.wait_for()


def test_a_point_of_the_frontier_loads_its_recipe(browser: Any, server: Any) -> None:
    visit = Visit(browser, server.url)
    page = visit.open()
    page.get_by_role("tab", name="Frontier").click()
    point = page.locator(".va-point[role=button]").first
    point.wait_for()
    visit.keep("frontier-1280")
    point.focus()
    page.keyboard.press("Enter")
    playwright.expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true", timeout=WAIT)
    playwright.expect(page.get_by_label("Recipe").first).to_have_value("dpm(steps=10)", timeout=WAIT)
