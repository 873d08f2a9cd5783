"""The README's picture: ``python -m tests.leaderboard.site.shoot PAGE PICTURE`` (make picture)."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

COLOURS = 255
"""A page has few: a palette makes the file a third."""


def shoot(page: Path, picture: Path) -> None:
    """Write what a browser 1280 wide shows of the top of ``page``."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": 1280, "height": 900}, offline=True)
        tab.goto(page.absolute().as_uri())
        tab.screenshot(path=picture)
        browser.close()
    Image.open(picture).convert("RGB").quantize(
        COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    ).save(picture, optimize=True)


if __name__ == "__main__":
    shoot(Path(sys.argv[1]), Path(sys.argv[2]))
