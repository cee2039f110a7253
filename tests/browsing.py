"""A real browser for tests; those without one are skipped."""

import shutil

import pytest
from playwright.sync_api import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = next((path for name in NAMES if (path := shutil.which(name))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
# Of whatever a page should come to show.
SHOWN_MS = 60_000

needs_browser = pytest.mark.skipif(FOUND is None, reason=f"no browser of {', '.join(NAMES)}")


def watch(page: Page) -> tuple[list[str], list[str]]:
    """Return what a page will print or raise, and the addresses that it will ask for."""
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    return said, asked
