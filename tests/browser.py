"""Pages in a real browser: headless Chromium driven by playwright, or a skip that says what to install."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TIMEOUT_MS = 120_000  # machines may be busy


def chromium() -> str:
    """The browser's path: $AVGEN_CHROMIUM, else the first that is installed."""
    found = os.environ.get("AVGEN_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium: install it (apt install chromium) or set AVGEN_CHROMIUM")
    return found


_opened: list[Any] = []  # playwright drives one at a time; who asks inside gets the same


@contextmanager
def browser() -> Iterator[Any]:
    """A playwright browser; `browser.new_context(color_scheme="dark", viewport={...})` opens windows."""
    if _opened:
        yield _opened[0]
        return
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: install the dev extra")
    path = chromium()
    with playwright.sync_playwright() as driver:
        # the sandbox needs privileges that containers lack
        _opened.append(driver.chromium.launch(executable_path=path, args=["--no-sandbox"], timeout=TIMEOUT_MS))
        try:
            yield _opened[0]
        finally:
            _opened.pop().close()


@contextmanager
def page(url: str | Path, **context: Any) -> Iterator[Any]:
    """One page of a file or address. Leaving fails when the page's own script has."""
    address = url if isinstance(url, str) else url.resolve().as_uri()
    with browser() as opened:
        shown = opened.new_context(**context).new_page()
        shown.set_default_timeout(TIMEOUT_MS)
        errors: list[str] = []
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        shown.goto(address)
        yield shown
        shown.context.close()
        assert not errors, errors
