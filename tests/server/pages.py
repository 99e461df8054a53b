"""The web page in Chromium, as the tests use it."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from imaging.phantoms import dataset, written
from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE_MS = 60_000
READY = "main:not([aria-busy])"
ENOUGH_BYTES_PER_S = 1500  # about four tokens a second: slow enough to watch
# reports violations of the page's policy on the console, and counts dialogs, which no input may open
WATCH = """
const report = (event) => console.error(`CSP ${event.violatedDirective} ${event.blockedURI}`);
addEventListener('securitypolicyviolation', report);
window.ran = [];
window.alert = window.prompt = window.confirm = (text) => window.ran.push(String(text));
"""


@contextmanager
def opened(
    browser: Browser,
    url: str,
    key: str | None,
    *,
    language: str = "en",
    wait: bool = True,
    **options: Any,
) -> Iterator[Page]:
    """Open the page in a context of its own; at the end, it must have had no error and sent nothing elsewhere.

    Args:
        browser: Chromium.
        url: URL of the server, or its link.
        key: Key for the tab, as a link would set it; None sets none.
        language: Language of the browser, which the page follows.
        wait: Whether to wait until the page is ready.
        options: Options of the context, such as `viewport`; by default it has 1280 x 800 pixels.
    """
    locale = {"ar": "ar-AE", "en": "en-GB"}[language]
    context = browser.new_context(locale=locale, **{"viewport": {"width": 1280, "height": 800}, **options})
    context.add_init_script(WATCH)
    if key is not None:
        context.add_init_script(
            f"sessionStorage.getItem('bimedix.key') ?? sessionStorage.setItem('bimedix.key', '{key}')"
        )
    page = context.new_page()
    problems: list[str] = []
    own = ("data:", "blob:", url.partition("#")[0])
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.text.startswith("CSP") else None)
    page.on("request", lambda request: None if request.url.startswith(own) else problems.append(request.url))
    try:
        page.goto(url)
        if wait:
            page.wait_for_selector(READY)
        yield page
        assert not problems, problems
        assert page.evaluate("window.ran") == []
    finally:
        context.close()


def attach(page: Page, *files: Path | dict[str, Any]) -> None:
    """Add files to the page, as its button does, and wait until they are prepared."""
    page.set_input_files("#file", list(files))
    expect(page.locator(".card[data-state=loading]")).to_have_count(0, timeout=PATIENCE_MS)
    expect(page.locator(".card[data-state=failed]")).to_have_count(0)


def send(page: Page, question: str) -> None:
    """Ask without waiting for the answer."""
    page.fill("#question", question)
    page.press("#question", "Enter")


def ask(page: Page, question: str) -> str:
    """Ask, and return the text of the complete answer."""
    n_before = page.locator(".turn").count()
    send(page, question)
    return answer(page, n_before)


def answer(page: Page, index: int) -> str:
    """Wait for an answer to be complete, and return its text."""
    page.locator(".turn").nth(index).locator(".usage").wait_for()
    return page.locator(".turn").nth(index).locator(".text").inner_text()


def sent_images(page: Page) -> list[list[bytes]]:
    """Return a list that will hold, for each request for an answer from now on, the image files in it."""
    found: list[list[bytes]] = []

    def note(request: Any) -> None:
        if request.url.endswith("/v1/chat/completions"):
            found.append([_file(part) for part in parts(request.post_data)])

    page.on("request", note)
    return found


def parts(body: str) -> list[dict[str, Any]]:
    """Return the image parts of a request's messages."""
    contents = [message["content"] for message in json.loads(body)["messages"] if message["role"] == "user"]
    return [part for content in contents for part in content if part["type"] == "image_url"]


def _file(part: dict[str, Any]) -> bytes:
    return base64.b64decode(part["image_url"]["url"].partition(",")[2])


@contextmanager
def slowly(page: Page, bytes_per_s: int = ENOUGH_BYTES_PER_S) -> Iterator[None]:
    """Limit the network to this rate, so that a test can watch an answer stream."""
    session = page.context.new_cdp_session(page)

    def limit(rate: int) -> None:
        conditions = {"offline": False, "latency": 0, "downloadThroughput": rate, "uploadThroughput": -1}
        session.send("Network.emulateNetworkConditions", conditions)

    session.send("Network.enable")
    limit(bytes_per_s)
    try:
        yield
    finally:
        limit(-1)
        session.detach()


def ct(folder: Path, *, n_frames: int = 1, seed: int = 0) -> Path:
    """Write a CT of a drawn chest whose header warns of burned-in text, and return its path."""
    y, x = np.mgrid[0:128, 0:128]
    values = np.full((n_frames, 128, 128), -1000.0)
    values[:, ((x - 64) / 55) ** 2 + ((y - 64) / 45) ** 2 < 1] = 40
    for frame in range(n_frames):
        for center in (40, 88):
            values[frame, ((x - center) / 17) ** 2 + ((y - 60) / (16 + 4 * frame)) ** 2 < 1] = -850
    noise = np.random.default_rng(seed).normal(0, 12, values.shape)
    stored = (values + noise).astype(np.int16)
    made = dataset(stored[0], 16, RescaleSlope=1, RescaleIntercept=0, BodyPartExamined="CHEST")
    made.WindowCenter, made.WindowWidth, made.BurnedInAnnotation = 40, 400, "YES"
    if n_frames > 1:
        made.NumberOfFrames = n_frames
        made.PixelData = stored.tobytes()
    path = folder / f"ct{n_frames}_{seed}.dcm"
    path.write_bytes(written(made))
    return path


def dictate(page: Page, text: str, *, piece: int = 7) -> None:
    """Replace the next answers by `text`, sent in pieces of `piece` characters."""
    cut = [text[at : at + piece] for at in range(0, len(text), piece)]
    chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": {"content": each}}]} for each in cut]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": len(cut)}})
    body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
    page.unroute_all()
    page.route(
        "**/v1/chat/completions", lambda route: route.fulfill(body=body, headers={"Content-Type": "text/event-stream"})
    )
