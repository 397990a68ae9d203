"""Where Chromium is. `python -m scripts.chromium` prints its path, or ends with 1.

An installed Chrome or Chromium comes first, then Playwright's own download; CHROMIUM names another.
"""

import os
import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)


def find() -> str | None:
    """The path of a browser that Playwright can drive, or None."""
    if named := os.environ.get("CHROMIUM"):
        return named
    for name in NAMES:
        path = shutil.which(name)
        if path and not is_snap_stub(path):
            return path
    for path in APPLICATIONS:
        if Path(path).exists():
            return path
    return playwrights_own()


def is_snap_stub(path: str) -> bool:
    """Ubuntu's chromium-browser is a script that only asks for a snap, which a container cannot have."""
    return not os.environ.get("SNAP_NAME") and b"snap install" in Path(path).read_bytes()[:4096]


def playwrights_own() -> str | None:
    from playwright.sync_api import sync_playwright

    try:
        with sync_playwright() as playwright:
            path = playwright.chromium.executable_path
    except Exception:  # its driver lacks a library that Chromium's package brings along
        return None
    return path if Path(path).exists() else None


if __name__ == "__main__":
    found = find()
    print(found or "no Chromium found")
    sys.exit(found is None)
