"""Where the browser is that the tests, the benchmark and the printed book are driven with."""

import os
import shutil
from pathlib import Path

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = "there is no Chromium: install it, name it in CHROMIUM, or run playwright install chromium"


def program(own: str) -> Path | None:
    """Return Chromium's program: what CHROMIUM names, or the system's, or Playwright's `own`; None if there is none."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PROGRAMS)), None) or own
    return Path(found) if Path(found).exists() else None
