"""The web chat in a real Chromium, on the demo model: the tasks of a working day."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from server.pages import answer, ask, attach, ct, opened, parts, send, sent_images, slowly

if TYPE_CHECKING:
    from playwright.sync_api import Browser

QUESTIONS = {"en": "Is there a nodule?", "ar": "هل توجد عقيدة رئوية؟"}
DETAILS = {"en": "Where do you see the nodule?", "ar": "أين توجد العقيدة؟"}
YES = {"en": "Yes", "ar": "نعم"}


@pytest.mark.parametrize("language", ["en", "ar"])
def test_a_question_about_an_image(browser: Browser, server: Any, samples: Path, language: str) -> None:
    with opened(browser, server.url, server.key, language=language) as page:
        assert page.get_attribute("html", "dir") == {"en": "ltr", "ar": "rtl"}[language]
        attach(page, samples / "nodule_right_upper.png")
        assert ask(page, QUESTIONS[language]).startswith(YES[language])
        first, second = page.locator(".turn").nth(0), page.locator(".turn").nth(1)
        # the picture stands with its question, and the answer to a later question shows it again
        assert first.locator(".question .thumb img").count() == 1
        assert first.locator(".about").count() == 0
        ask(page, DETAILS[language])
        assert second.locator(".question .thumb").count() == 0
        assert second.locator(".about .thumb").count() == 1
        paragraph = second.locator(".text p").first
        assert paragraph.get_attribute("dir") == "auto"
        assert paragraph.evaluate("p => getComputedStyle(p).direction") == {"en": "ltr", "ar": "rtl"}[language]
        notice = page.locator("#notice")
        assert "not for clinical use" in notice.inner_text()
        assert ("وليس للاستخدام السريري" in notice.inner_text()) == (language == "ar")
        second.locator(".thumb").click()
        assert page.locator("dialog img").evaluate("image => image.naturalWidth") >= 64
        assert "not for clinical use" in page.locator("dialog").inner_text()


def test_the_interface_changes_its_language_under_a_chat(browser: Browser, server: Any) -> None:
    with opened(browser, server.url, server.key) as page:
        text = ask(page, QUESTIONS["en"])
        left = page.locator("#sidebar").bounding_box()
        page.click("#language")
        right = page.locator("#sidebar").bounding_box()
        assert left is not None and right is not None
        assert left["x"] == 0 and right["x"] + right["width"] == 1280  # mirrored
        assert page.locator("#send").inner_text() == "إرسال"
        assert page.locator(".text").inner_text() == text
        assert page.locator(".text p").evaluate("p => getComputedStyle(p).direction") == "ltr"
        page.reload()
        page.locator("#send", has_text="إرسال").wait_for()


def test_a_dicom_file_with_window_and_frame(browser: Browser, server: Any, tmp_path: Path) -> None:
    with opened(browser, server.url, server.key) as page:
        attach(page, ct(tmp_path, n_frames=3))
        card = page.locator(".card")
        # warnings are shown before the question can be sent
        assert "may show who the patient is" in card.locator(".warnings").inner_text()
        assert "Geheim" not in page.content()
        seen = [card.locator("img").get_attribute("src")]

        def changed() -> None:
            page.locator(".card[data-state=ready]").wait_for()
            for _ in range(100):
                source = card.locator("img").get_attribute("src")
                if source != seen[-1]:
                    break
                page.wait_for_timeout(50)
            assert source not in seen
            seen.append(source)

        card.locator("select").select_option("lung")
        changed()
        card.locator("input[type=range]").fill("3")
        changed()
        card.locator("select").select_option("own")
        card.locator("input[type=number]").first.fill("-500")
        changed()
        with page.expect_request("**/v1/chat/completions") as request:
            ask(page, "What do you see?")
        (image,) = parts(str(request.value.post_data))
        assert image["image_url"]["url"].startswith("data:application/dicom;base64,")
        assert image["bimedix"] == {"window": "-500/400", "frame": 3}
        assert page.locator(".question .thumb .icon").count() == 1  # the warning stays with the picture


def test_an_answer_streams_and_stops(browser: Browser, server: Any, samples: Path) -> None:
    with opened(browser, server.url, server.key) as page:
        attach(page, samples / "enlarged_heart.png")
        text = page.locator(".text")
        with slowly(page):
            send(page, "Describe this image.")
            lengths = set()
            while len(lengths) < 3:
                lengths.add(len(text.inner_text()))
                page.wait_for_timeout(50)
            assert page.locator("#send").inner_text() == "Stop"
            page.keyboard.press("Escape")
            page.get_by_text("Stopped. This answer is incomplete.").wait_for()
        part = text.inner_text()
        assert part
        assert page.locator("#send").inner_text() == "Send"
        assert page.evaluate("document.activeElement.id") == "question"
        page.get_by_role("button", name="Try again").click()
        whole = answer(page, 0)
        assert len(whole) > len(part)
        assert page.locator(".outcome").is_hidden()


def test_chats_never_mix(browser: Browser, server: Any, samples: Path) -> None:
    files = [samples / name for name in ("nodule_right_upper.png", "effusion_left.png")]
    question = "Describe this image."
    with opened(browser, server.url, server.key) as page:
        sent = sent_images(page)
        attach(page, files[0])
        page.click("#new-chat")
        assert page.locator(".card").count() == 0
        attach(page, files[1])
        with slowly(page):
            page.locator(".chat").nth(1).click()
            send(page, question)
            page.locator(".text p").wait_for()
            page.locator(".chat").first.click()
            assert page.locator(".turn").count() == 0
            send(page, question)
            page.locator(".text p").wait_for()
            page.locator(".chat").nth(1).click()
            # answers stream in both chats
            assert page.locator("#chat-list .spinner").count() == 2
        first = answer(page, 0)
        thumb = page.locator(".thumb img").get_attribute("src")
        page.locator("#chat-list .dot").wait_for()
        page.locator(".chat").first.click()
        second = answer(page, 0)
        assert page.locator(".thumb img").get_attribute("src") != thumb
        assert page.locator("#chat-list .dot").count() == 0
        assert sent == [[files[0].read_bytes()], [files[1].read_bytes()]]
        ask(page, QUESTIONS["en"])
        assert sent[2] == [files[1].read_bytes()]
        assert "nodule" in first.lower()
        assert "effusion" in second.lower()


def test_the_picture_that_is_prepared_belongs_to_its_chat(browser: Browser, server: Any, samples: Path) -> None:
    with opened(browser, server.url, server.key) as page:
        held: list[Any] = []

        def hold(route: Any) -> None:
            held.append(route)

        page.route("**/api/look", hold)
        page.set_input_files("#file", samples / "normal.png")
        page.locator(".card[data-state=loading]").wait_for()
        page.fill("#question", "for the first chat")
        page.click("#new-chat")
        with page.expect_response("**/api/look"):
            held[0].continue_()
        page.wait_for_timeout(200)
        assert page.locator(".card").count() == 0
        assert page.input_value("#question") == ""
        page.locator(".chat").nth(1).click()
        page.locator(".card[data-state=ready]").wait_for()
        assert page.input_value("#question") == "for the first chat"


def test_the_last_question_is_edited(browser: Browser, server: Any, samples: Path) -> None:
    with opened(browser, server.url, server.key) as page:
        attach(page, samples / "nodule_right_upper.png")
        ask(page, "Is the heart enlarged?")
        page.fill("#question", "a draft")
        page.get_by_role("button", name="Edit").click()
        assert page.input_value("#question") == "Is the heart enlarged?"
        assert page.locator(".card").count() == 1
        page.get_by_role("button", name="Cancel").click()
        assert page.input_value("#question") == "a draft"
        page.get_by_role("button", name="Edit").click()
        page.fill("#question", QUESTIONS["en"])
        page.press("#question", "Enter")
        page.locator(".turn", has_text=QUESTIONS["en"]).locator(".usage").wait_for()
        assert page.locator(".turn").count() == 1
        assert page.locator(".text").inner_text().startswith("Yes")
        assert page.input_value("#question") == "a draft"


def test_loading_the_page_again(browser: Browser, server: Any, samples: Path) -> None:
    with opened(browser, server.url, server.key) as page:
        attach(page, samples / "nodule_right_upper.png")
        text = ask(page, QUESTIONS["en"])
        page.wait_for_timeout(1000)
        kept = page.evaluate("JSON.stringify({...sessionStorage}) + JSON.stringify({...localStorage})")
        assert QUESTIONS["en"] not in kept and "nodule" not in kept
        assert page.evaluate("indexedDB.databases()") == []
        page.reload()
        assert answer(page, 0) == text
        assert page.locator(".question .thumb").count() == 1
        # the page asks for the file, and accepts no other
        assert "not kept" in page.locator("#lost").inner_text()
        send(page, "And the heart?")
        assert "Add the same file" in page.locator("#complaint").inner_text()
        page.set_input_files("#file", samples / "normal.png")
        page.locator("#complaint", has_text="not the file of this chat").wait_for()
        page.set_input_files("#file", samples / "nodule_right_upper.png")
        page.locator("#lost").wait_for(state="hidden")
        sent = sent_images(page)
        ask(page, "And the heart?")
        assert sent == [[(samples / "nodule_right_upper.png").read_bytes()]]


def test_what_was_kept_cannot_be_read_after_the_server_ended(browser: Browser, server: Any) -> None:
    with opened(browser, server.url, server.key) as page:
        ask(page, QUESTIONS["en"])
        page.wait_for_timeout(1000)
        other = {"key": "A" * 43 + "="}  # as after a restart
        page.route("**/api/tab-key", lambda route: route.fulfill(json=other))
        page.reload()
        page.wait_for_selector("main:not([aria-busy])")
        assert page.locator(".turn").count() == 0
        assert page.evaluate("sessionStorage.getItem('bimedix.chats')") is None


def test_clearing_everything(browser: Browser, server: Any) -> None:
    with opened(browser, server.url, server.key) as page:
        ask(page, QUESTIONS["en"])
        page.click("#clear")
        page.locator("dialog").get_by_role("button", name="Clear everything").click()
        page.locator(".turn").wait_for(state="detached")
        page.wait_for_timeout(600)
        page.reload()
        page.wait_for_selector("main:not([aria-busy])")
        assert page.locator(".turn").count() == 0


def test_the_link_works_once_and_the_key_after_it(browser: Browser, start_server: Callable[..., Any]) -> None:
    own = start_server()
    with opened(browser, own.link, None) as page:
        assert "#" not in page.url
        assert ask(page, QUESTIONS["en"])
    with opened(browser, own.link, None, wait=False) as page:
        page.fill("#key", "a wrong key")
        page.keyboard.press("Enter")
        page.get_by_text("not the server's").wait_for()
        page.fill("#key", own.key)
        page.keyboard.press("Enter")
        page.wait_for_selector("main:not([aria-busy])")
        assert page.locator("dialog").count() == 0
