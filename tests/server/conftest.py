"""Fixtures of the server's tests: a server, and the Chromium of this machine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from server_process import Server, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# without these, a browser calls its maker's servers, and QUIC would bypass what a test records
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--host-resolver-rules=MAP *.example 127.0.0.1",
]  # fmt: skip


@pytest.fixture(scope="session")
def server(bundles: dict[str, Path]) -> Iterator[Server]:
    """Return the server that all tests share, with the demo model at F16 and a context of 1024 tokens."""
    with serving(bundles["F16"]) as running:
        yield running


@pytest.fixture
def start_server(bundles: dict[str, Path]) -> Iterator[Callable[..., Server]]:
    """Return a function that starts a server for one test, with more arguments; it ends with the test."""
    with ExitStack() as stack:
        yield lambda *arguments, **options: stack.enter_context(serving(bundles["F16"], *arguments, **options))


# not for the session: while Playwright runs, this thread can run no other event loop
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return the installed Chromium, without a window."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=CHROMIUM)
        try:
            yield chromium
        finally:
            chromium.close()
