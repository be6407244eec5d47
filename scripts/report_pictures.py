"""Pictures of a run's report for the documentation, in the machine's Chromium.

python scripts/report_pictures.py runs/demo/result/report.html docs/images
"""

from __future__ import annotations

import shutil
from pathlib import Path

import click
from playwright.sync_api import sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# name of the picture: what is scrolled to, colours, width and height of the window
SHOTS = {
    "report": ("h1", "light", (1280, 1130)),
    "report-layers": ("#layers", "dark", (1280, 1000)),
    "report-phone": ("h1", "light", (390, 844)),
}


@click.command()
@click.argument("page", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("out", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(page: Path, out: Path) -> None:
    """Write report*.png of PAGE into the folder OUT."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise click.ClickException(f"No browser is here: {', '.join(NAMES)}. Install one.")
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found)
        for name, (place, colours, (width, height)) in SHOTS.items():
            window = browser.new_page(viewport={"width": width, "height": height}, color_scheme=colours)
            window.goto(page.resolve().as_uri())
            window.locator(place).first.evaluate("each => each.scrollIntoView()")
            if place == "h1":
                window.evaluate("scrollTo(0, 0)")
            window.screenshot(path=out / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
