"""The page in a real browser: quiet, alone, within its window, and without barriers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from example_page import example_page
from hostile_page import hostile_page

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The machine's Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser is here: {', '.join(NAMES)}")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=found)
        yield chromium
        chromium.close()


@pytest.fixture
def said() -> list[str]:
    """What a page said, asked for or opened that it should not."""
    return []


def opened(browser: Browser, file: Path, said: list[str], width: int = 1280) -> Page:
    """The file in a window, with everything that it does noted in ``said``."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("console", lambda message: said.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: said.append(request.url) if not request.url.startswith("data:") else None)
    page.goto(file.as_uri())
    if said == [file.as_uri()]:
        said.clear()
    return page


def demo_report(folder: Path) -> Path:
    """What the demo ends with."""
    command = [sys.executable, "-W", "ignore", "-m", "trt_qat", "demo", "--out", str(folder)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return Path(said.splitlines()[-1].removeprefix("report: "))


@pytest.fixture(scope="module", params=["example", pytest.param("demo", marks=pytest.mark.slow)])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    if request.param == "demo":
        return demo_report(folder)
    file = folder / "report.html"
    file.write_text(example_page(), encoding="utf-8")
    return file


def test_it_is_quiet_and_fits_a_phone_and_a_screen(browser: Browser, file: Path, said: list[str]) -> None:
    page = opened(browser, file, said, width=390)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.locator("h1").count() == 1
    levels = page.locator("h1, h2, h3").evaluate_all("all => all.map(each => Number(each.tagName[1]))")
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert said == []


def test_nothing_bars_anybody_in_light_and_dark(browser: Browser, file: Path, said: list[str]) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = opened(browser, file, said)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    quick = {"resultTypes": ["violations"]}  # a fifth of the time: nothing is gathered about what is well
    for dark, rules in ((False, {}), (True, {"runOnly": ["color-contrast"]})):  # all else is the same
        page.emulate_media(color_scheme="dark" if dark else "light")
        violations = axe.run(page, options={**quick, **rules}).response["violations"]
        assert [(found["id"], found["nodes"][0]["html"][:200]) for found in violations] == []
    assert said == []


def test_the_drawing_follows_the_choice_and_leads_to_the_rows(browser: Browser, file: Path, said: list[str]) -> None:
    page = opened(browser, file, said)
    box = page.locator(".drawing a rect").first
    before = box.evaluate("each => getComputedStyle(each).fill")
    page.keyboard.press("Tab")
    assert page.locator(":focus").inner_text() == "Skip to the report"
    page.locator("#by-sqnr").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#by-error").is_checked()
    assert box.evaluate("each => getComputedStyle(each).fill") != before
    page.locator(".drawing a").first.focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.querySelector(':target th').textContent") == "model.0"
    assert said == []


def test_print_shows_what_is_folded(browser: Browser, file: Path, said: list[str]) -> None:
    page = opened(browser, file, said)
    folded = page.locator("details:not([open]) td").first
    assert not folded.is_visible()
    page.emulate_media(media="print")
    assert folded.is_visible()


def test_a_hostile_record_runs_nothing(browser: Browser, tmp_path: Path, said: list[str]) -> None:
    file = tmp_path / "report.html"
    file.write_text(hostile_page(), encoding="utf-8")
    page = opened(browser, file, said, width=390)
    assert page.title().startswith("INT8 report:")
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert said == []
