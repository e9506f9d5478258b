"""The pictures of README.md: the upper part of a report, small enough for a repository.

    .venv/bin/python docs/pictures/take.py logs/quickstart/report.html quickstart.png 1500
    .venv/bin/python docs/pictures/take.py docs/results/small_collapse/report.png collapse.png 1740

Reads a report, or a picture of one whose runs are not kept; writes beside this script. Needs what
`make test` installs, and chromium.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image

WIDTH = 1300
"""px of the window"""
COLORS = 64
"""of the picture"""


def main(source: Path, name: str, height: int) -> None:
    """Write the picture, `height` px of the page from its top."""
    seen = Image.open(source) if source.suffix == ".png" else Image.open(look(source, height))
    upper = seen.convert("RGB").crop((0, 0, seen.width, height))
    small = upper.resize((WIDTH * 2 // 3, round(height * WIDTH * 2 / 3 / seen.width)))
    target = Path(__file__).with_name(name)
    small.quantize(COLORS, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target}: {target.stat().st_size / 1000:.0f} kB")


def look(report: Path, height: int) -> io.BytesIO:
    """The report in a browser, as soon as all of it is drawn."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        page = browser.new_page(viewport={"width": WIDTH, "height": height})
        page.goto(report.resolve().as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")
        shot = page.screenshot()
        browser.close()
    return io.BytesIO(shot)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
