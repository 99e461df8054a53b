"""The web chat for everybody: keyboard, screen readers, widths, both directions; and its texts when things fail."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect
from server.pages import answer, ask, attach, ct, dictate, opened, send, slowly

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).resolve().parents[2]
# axe-core is under the MPL and only judges the page here: .ci/run fetches it with npm, nothing ships it
AXE = ROOT / "build" / "axe" / "node_modules" / "axe-core" / "axe.min.js"
SIZES = [(360, 740), (768, 1024), (1280, 800), (3840, 2160)]
WIDE = (
    """
| المنطقة | Right lung, upper zone | Left lung, upper zone | Right lung, lower zone | Left lung, lower zone |
|---|---|---|---|---|
| CT | nodule 12 x 8 mm | clear | clear | clear |

توجد **عقيدة رئوية** قطرها 12 x 8 mm في الفص العلوي الأيمن (CTR > 0.5).

1. حجم القلب طبيعي
2. Heart size is normal

- No effusion.

> متابعة بعد 3 أشهر

"""
    + "Pneumonoultramicroscopicsilicovolcanoconiosis" * 8
)


def test_everything_by_keyboard(browser: Browser, server: Any, samples: Path) -> None:
    with opened(browser, server.url, server.key) as page:
        focused = "document.activeElement.id || document.activeElement.className"
        assert page.evaluate("document.querySelector('a, button, input, textarea, [tabindex]').id") == "skip"
        page.locator("#skip").focus()
        page.keyboard.press("Enter")
        assert page.evaluate(focused) == "question"
        page.keyboard.type("Is there")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("a nodule?")
        attach(page, samples / "nodule_right_upper.png")
        page.keyboard.press("Enter")
        text = answer(page, 0)
        assert page.locator(".asked p").inner_text() == "Is there\na nodule?"
        # a screen reader announces the start, and the complete answer once
        expect(page.locator("#announcer")).to_have_text(f"Answer: \u2068{text}\u2069")
        thumb = page.locator(".thumb")
        thumb.focus()
        page.keyboard.press("Enter")
        page.locator("dialog").wait_for()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.closest('main, nav') === null")
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")
        assert page.evaluate(focused) == "thumb"
        outline = thumb.evaluate("e => getComputedStyle(e).outlineStyle")
        assert outline != "none"
        page.set_viewport_size({"width": 360, "height": 740})
        page.locator("#open-chats").focus()
        page.keyboard.press("Enter")
        assert page.evaluate(focused) == "close-chats"
        page.keyboard.press("Escape")
        assert page.evaluate(focused) == "open-chats"


def test_every_width_in_both_directions(browser: Browser, server: Any) -> None:
    with opened(browser, server.url, server.key) as page:
        dictate(page, WIDE)
        ask(page, "What do you see?")
        for language in ("en", "ar"):
            for width, height in SIZES:
                page.set_viewport_size({"width": width, "height": height})
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                turns = page.evaluate("(e => [e.scrollWidth, e.clientWidth])(document.getElementById('turns'))")
                assert turns[0] <= turns[1], (language, width)
                for part in ("#notice", "#question", "#send", "#language"):
                    box = page.locator(part).bounding_box()
                    assert box is not None, part
                    assert box["x"] >= 0 and box["x"] + box["width"] <= width, (part, width)
                    assert box["y"] >= 0 and box["y"] + box["height"] <= height, (part, width)
            page.set_viewport_size({"width": 1280, "height": 800})
            page.click("#language")


def test_directions_within_an_answer(browser: Browser, server: Any) -> None:
    with opened(browser, server.url, server.key) as page:
        dictate(page, WIDE)
        ask(page, "What do you see?")
        shown = page.evaluate(
            "() => [...document.querySelectorAll('.text :is(p, ul, ol, table, blockquote, th, td)')]"
            ".map((e) => [e.tagName, e.hasAttribute('dir'), getComputedStyle(e).direction, e.innerText])"
        )
        assert all(has for _, has, _, _ in shown)
        direction = {(tag, text.split("\n")[0][:9]): way for tag, _, way, text in shown}
        assert direction["OL", "حجم القلب"] == direction["BLOCKQUOTE", "متابعة بع"] == "rtl"
        assert direction["UL", "No effusi"] == direction["TD", "clear"] == "ltr"
        # names and quantities keep their own order
        bdi = page.locator(".text p bdi").all_inner_texts()
        assert bdi == ["12 x 8 mm", "CTR > 0.5"]


@pytest.mark.skipif(not AXE.is_file(), reason="axe-core is not here: npm install --prefix build/axe axe-core")
@pytest.mark.parametrize(("language", "scheme"), [("en", "light"), ("ar", "dark")])
def test_axe_finds_nothing(browser: Browser, server: Any, tmp_path: Path, language: str, scheme: str) -> None:
    with opened(browser, server.url, server.key, language=language, color_scheme=scheme) as page:
        _judge(page, "empty")
        attach(page, ct(tmp_path, n_frames=2))
        _judge(page, "a picture")
        dictate(page, WIDE)
        ask(page, "What do you see?")
        _judge(page, "an answer")
        page.locator(".thumb").first.click()
        _judge(page, "a dialog")
        page.keyboard.press("Escape")
        page.set_viewport_size({"width": 360, "height": 740})
        page.wait_for_timeout(300)
        _judge(page, "narrow")


def _judge(page: Page, what: str) -> None:
    page.evaluate(AXE.read_text(encoding="utf-8") + "; 0")
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    assert len(result["passes"]) > 15
    found = [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in result["violations"]]
    assert found == [], what


FAILURES: list[tuple[int, dict[str, Any], dict[str, str], str, str]] = [
    (400, {"code": "context_length_exceeded", "n_prompt_tokens": 1300, "n_ctx": 1024}, {}, "Shorten it", "276"),
    (413, {"code": "request_too_large"}, {}, "larger than this server accepts", "أكبر"),
    (429, {"code": "queue_full", "place": 64}, {"Retry-After": "7"}, "queue is full", "7"),
    (429, {"code": "rate_limit_exceeded"}, {"Retry-After": "3"}, "The server is busy.", "3"),
    (500, {"code": "defect"}, {}, "The server failed.", "تعذّر على الخادم"),
    (503, {"code": "loading"}, {}, "still loading", "قيد التحميل"),
    (400, {"code": "invalid_image", "message": "The image is PDF."}, {}, "The image is PDF.", "The image is PDF."),
]


def _fulfil(answered: dict[str, Any], route: Any) -> None:
    route.fulfill(**answered)


def test_failures_in_words(browser: Browser, server: Any) -> None:
    with opened(browser, server.url, server.key) as page:
        for status, error, headers, english, arabic in FAILURES:
            body = json.dumps({"error": {"message": "m", "type": "t", "param": None, **error}})
            page.unroute_all()
            answered = {"status": status, "body": body, "headers": headers}
            page.route("**/v1/chat/completions", partial(_fulfil, answered))
            page.click("#new-chat")
            send(page, "Is there a nodule?")
            expect(page.locator(".answer .problem")).to_contain_text(english)
            page.click("#language")
            expect(page.locator(".answer .problem")).to_contain_text(arabic)
            page.click("#language")
        # a question without an answer is not silently dropped from the conversation
        page.unroute_all()
        send(page, "And the heart?")
        expect(page.locator("#complaint")).to_contain_text("no answer yet")
        page.get_by_role("button", name="Try again").click()
        assert answer(page, 0)


def test_a_prompt_that_is_too_long(browser: Browser, server: Any) -> None:
    with opened(browser, server.url, server.key) as page:
        send(page, "nodule " * 6000)
        expect(page.locator(".answer .problem")).to_contain_text("too long by")


def test_a_picture_of_another_chat_is_not_believed(browser: Browser, server: Any, samples: Path) -> None:
    """The server names the files of an answer; the page drops an answer about any other file."""
    with opened(browser, server.url, server.key) as page:
        attach(page, samples / "normal.png")
        foreign = {"images": [{"sha256": "0" * 64, "width_px": 1, "height_px": 1, "cached": False}]}
        chunks = [
            {"choices": [{"index": 0, "delta": {"content": "A large mass."}}]},
            {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop", "bimedix": foreign}]},
        ]
        body = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks) + "data: [DONE]\n\n"
        page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body))
        send(page, "What do you see?")
        expect(page.locator(".answer .problem")).to_contain_text("other pictures")
        assert "mass" not in page.locator(".text").inner_text()


def test_copy_and_export(browser: Browser, server: Any, samples: Path, tmp_path: Path) -> None:
    allowed = {"permissions": ["clipboard-read", "clipboard-write"], "accept_downloads": True}
    with opened(browser, server.url, server.key, **allowed) as page:
        attach(page, samples / "nodule_right_upper.png")
        text = ask(page, "Where do you see the nodule?")
        page.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == text
        page.click("#export")
        with page.expect_download() as download:
            page.locator("dialog").get_by_role("button", name="JSON").click()
        download.value.save_as(tmp_path / "chat.json")
        exported = json.loads((tmp_path / "chat.json").read_text(encoding="utf-8"))
        assert "not for clinical use" in exported["notice"]
        (turn,) = exported["turns"]
        assert turn["answer"] == text
        assert turn["state"] == "done"
        assert turn["images"][0]["number"] == 1
        assert "nodule_right_upper" not in json.dumps(exported)  # the name of a file may name a patient


def test_dropping_and_pasting(browser: Browser, server: Any, tmp_path: Path) -> None:
    data = list(ct(tmp_path).read_bytes())
    with opened(browser, server.url, server.key) as page:
        for kind in ("drop", "paste"):
            page.evaluate(
                """([kind, data]) => {
                  const files = new DataTransfer();
                  files.items.add(new File([new Uint8Array(data)], `${kind}.dcm`));
                  const init = { bubbles: true, cancelable: true };
                  const event = kind === 'drop' ? new DragEvent('drop', { ...init, dataTransfer: files })
                    : new ClipboardEvent('paste', { ...init, clipboardData: files });
                  document.body.dispatchEvent(event);
                }""",
                [kind, data],
            )
        expect(page.locator(".card[data-state=ready]")).to_have_count(2, timeout=60_000)
        assert page.locator(".card .name").all_inner_texts() == ["drop.dcm", "paste.dcm"]


def test_the_model_dies_while_it_answers(browser: Browser, start_server: Callable[..., Any]) -> None:
    own = start_server()
    with opened(browser, own.url, own.key) as page:
        with slowly(page):
            send(page, "Describe what a chest radiograph shows.")
            page.locator(".text p").wait_for()
            children = subprocess.run(
                ["pgrep", "-P", str(own.process.pid), "-f", "model.process"], capture_output=True, text=True, check=True
            )
            os.kill(int(children.stdout.split()[0]), signal.SIGKILL)
            # bytes may still be in transit: the answer is complete, or an error with a part of it
            page.get_by_role("button", name="Try again").wait_for(timeout=60_000)
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".usage")).to_have_count(1, timeout=60_000)
