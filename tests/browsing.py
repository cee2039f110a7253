"""A real browser for tests; those without one are skipped."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = next((path for name in NAMES if (path := shutil.which(name))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Of whatever a page should come to show.
SHOWN_MS = 60_000

needs_browser = pytest.mark.skipif(FOUND is None, reason=f"no browser of {', '.join(NAMES)}")


@contextmanager
def started_browser() -> Iterator[Browser]:
    """Start it, and end it."""
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=FOUND, args=ARGUMENTS)
        yield started
        started.close()
