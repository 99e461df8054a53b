"""The page never runs, loads or sends content of a file, a header or a model."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import expect
from server.pages import PATIENCE_MS, answer, attach, ct, dictate, opened, send

from bimedix_edge.imaging import words
from bimedix_edge.imaging.notes import note
from bimedix_edge.imaging.window import PRESETS
from bimedix_edge.server.front import page as page_module

if TYPE_CHECKING:
    from playwright.sync_api import Browser

STATIC = Path(page_module.__file__).parents[1] / "static"
MAX_LINES = 300
# the page isolates values, so that neither direction turns the other around
ISOLATES = dict.fromkeys(map(ord, "\u2068\u2069"))
VECTORS = """
<script>alert(1)</script>
<script src=//evil.test/x.js></script>
<img src=x onerror=alert(1)>
<img src=//evil.test/pixel.png>
<svg onload=alert(1)>
<svg><script>alert(1)</script></svg>
<svg><animate onbegin=alert(1) attributeName=x dur=1s></svg>
<math><mtext><table><mglyph><style><img src=x onerror=alert(1)>
<iframe srcdoc="<script>parent.alert(1)</script>"></iframe>
<iframe src="javascript:parent.alert(1)"></iframe>
<object data="javascript:alert(1)"></object>
<embed src="javascript:alert(1)">
<a href="javascript:alert(1)" autofocus onfocus=alert(1)>x</a>
<input autofocus onfocus=alert(1)>
<details open ontoggle=alert(1)>x</details>
<video><source onerror=alert(1)></video>
<audio src=x onerror=alert(1)>
<body onload=alert(1)>
<style>@import '//evil.test/x.css'; * { background: url(//evil.test/y) }</style>
<link rel=stylesheet href=//evil.test/x.css>
<meta http-equiv=refresh content="0;url=//evil.test/">
<base href=//evil.test/>
<form action=//evil.test/><button autofocus>x</button></form>
<template><script>alert(1)</script></template>
<noscript><p title="</noscript><img src=x onerror=alert(1)>">
[x](javascript:alert(1))
![x](//evil.test/pixel.png)
<javascript:alert(1)>
"><img src=x onerror=alert(1)>
'-alert(1)-'
""".strip().splitlines()
FRAMES = ("{}", "**{}**", "- {}", "| {} | b |\n|---|---|\n| {} | `{}` |", "```\n{}\n```")
PAYLOADS = [frame.replace("{}", vector) for frame, vector in itertools.product(FRAMES, VECTORS)]
# elements that the page itself never creates, and listeners as attributes
FOREIGN = """
() => [...document.querySelectorAll('*')].filter((element) =>
  ['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'BASE', 'LINK', 'META', 'STYLE', 'A', 'TEMPLATE', 'MATH', 'VIDEO', 'AUDIO']
    .includes(element.tagName.toUpperCase()) && !element.matches('head > *, #skip') ||
  [...element.attributes].some(({ name, value }) => name.startsWith('on') || /^\\s*javascript:/i.test(value))
).map((element) => element.outerHTML)
"""


@pytest.fixture(params=["as served", "without its policy"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return options of a browser: the policy is the second defence, so the first is also tested without it."""
    return {"bypass_csp": request.param == "without its policy", "accept_downloads": True}


def test_there_are_150_payloads() -> None:
    assert len(set(PAYLOADS)) == 150


def test_payloads_in_answers_questions_and_errors(
    browser: Browser, server: Any, options: dict[str, Any], tmp_path: Path
) -> None:
    hostile = "\n\n".join(PAYLOADS)
    with opened(browser, server.url, server.key, **options) as page:
        dictate(page, hostile)
        send(page, hostile)
        shown = answer(page, 0)
        assert shown.count("alert(1)") == hostile.count("alert(1)")  # all of it is shown as text
        page.unroute_all()
        error = {"error": {"message": hostile, "code": "x"}}
        page.route("**/v1/chat/completions", lambda route: route.fulfill(status=400, json=error))
        send(page, "again")
        page.locator(".answer .problem").last.wait_for()
        assert page.evaluate(FOREIGN) == []
        page.click("#export")
        with page.expect_download() as download:
            page.locator("dialog").get_by_role("button", name="HTML").click()
        exported = tmp_path / "chat.html"
        download.value.save_as(exported)
        page.wait_for_timeout(300)
    text = exported.read_text(encoding="utf-8")
    assert "not for clinical use" in text
    with opened(browser, exported.as_uri(), None, wait=False, bypass_csp=True) as page:
        assert page.inner_text("article >> nth=0").count("alert(1)") == 2 * hostile.count("alert(1)")
        page.wait_for_timeout(300)
        assert page.evaluate(FOREIGN) == []


def test_payloads_in_names_and_tags(browser: Browser, server: Any, samples: Path, options: dict[str, Any]) -> None:
    sample = (samples / "normal.png").read_bytes()
    with opened(browser, server.url, server.key, **options) as page:
        facts = server.request("GET", "/api/facts").json
        facts["limits"]["max_images"] = len(PAYLOADS)
        page.route("**/api/facts", lambda route: route.fulfill(json=facts))
        page.reload()
        page.wait_for_selector("main:not([aria-busy])")
        attach(page, samples / "normal.png")
        look = page.locator(".card img").get_attribute("src")
        page.locator(".card-head button").click()
        tags = {f"tag{index}": payload for index, payload in enumerate(PAYLOADS)}
        tags |= {"modality": PAYLOADS[0], "body_part": PAYLOADS[1], "view": PAYLOADS[2], "window": PAYLOADS[3]}
        notes = [{"code": payload, "fields": {payload: payload}, "text": payload} for payload in PAYLOADS]
        fields = {"preset": PAYLOADS[4], "center": PAYLOADS[5], "width": PAYLOADS[6]}
        notes.append({"code": "preset_window", "fields": fields, "text": PAYLOADS[7]})
        seen = {"png": look, "sha256": "0" * 64, "width_px": 9, "height_px": 9, "n_frames": 1}
        seen |= {"notes": notes, "warnings": notes, "tags": tags, "presets": PAYLOADS}
        page.route("**/api/look", lambda route: route.fulfill(json=seen))
        attach(page, {"name": VECTORS[2], "mimeType": "image/png", "buffer": sample})
        card = page.locator(".card")
        card.locator("summary").click()
        assert card.inner_text().count("alert(1)") >= 3 * "\n".join(PAYLOADS).count("alert(1)")
        card.locator(".preview").click()
        page.locator("dialog").wait_for()
        page.keyboard.press("Escape")
        page.unroute_all()
        page.context.set_offline(True)  # 149 names need no 149 pictures
        names = [payload.replace("/", "\u2215").replace("\n", " ")[:200] for payload in PAYLOADS[:-1]]
        page.set_input_files("#file", [{"name": name, "mimeType": "image/png", "buffer": sample} for name in names])
        expect(page.locator(".card[data-state=failed]")).to_have_count(len(names), timeout=PATIENCE_MS)
        assert "alert(1)" in page.locator(".card .name").nth(3).inner_text()
        assert page.evaluate(FOREIGN) == []
        page.wait_for_timeout(300)


def test_the_browser_refuses_what_the_page_never_does(browser: Browser, server: Any) -> None:
    """The second defence works: Trusted Types and the policy refuse a script that a later change lets in."""
    with opened(browser, server.url, server.key) as page:
        refused = page.evaluate(
            "() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch (error) { return error.name } }"
        )
        assert refused == "TypeError"


def test_headers_of_the_pages_files(server: Any) -> None:
    policy = "default-src 'none'; script-src 'self'; style-src 'self'"
    for path in ("/", *(f"/static/{file.name}" for file in STATIC.iterdir())):
        found = server.request("GET", path, key=False)
        assert found.status == 200
        assert found.headers["content-security-policy"].startswith(policy)
        assert found.headers["x-content-type-options"] == "nosniff"
        assert found.headers["referrer-policy"] == "no-referrer"
        assert found.headers["cross-origin-resource-policy"] == "same-origin"
        again = server.request("GET", path, headers={"If-None-Match": f'"other", {found.headers["etag"]}'}, key=False)
        assert (again.status, again.body) == (304, b"")
    assert server.request("GET", "/static/no.js", key=False).status == 404
    assert server.request("GET", "/static/..%2fpage.py", key=False).status == 404
    assert server.request("GET", "/api/tab-key", key=False).status == 401
    one, two = (server.request("GET", "/api/tab-key") for _ in range(2))
    assert one.json == two.json and one.headers["cache-control"] == "no-store"


def test_the_sources_hold_nothing_that_parses_strings_or_reaches_out() -> None:
    for file in STATIC.iterdir():
        text = file.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= MAX_LINES, file
        assert not re.search(r"(inner|outer)HTML\s*=|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            file
        )
        assert not [url for url in re.findall(r"https?://[^\"'\s]+", text) if url != "http://www.w3.org/2000/svg"], file
        if file.suffix == ".js":
            assert text.startswith("/**"), f"{file} does not say what it is"


def _strings(name: str) -> dict[str, str]:
    text = (STATIC / name).read_text(encoding="utf-8")
    return dict(re.findall(r'^  "([\w.]+)": ("[^"]*"|\{[^}]*?\})', text, re.MULTILINE | re.DOTALL))


def test_both_languages_say_the_same() -> None:
    english, arabic = _strings("strings_en.js"), _strings("strings_ar.js")
    assert english.keys() == arabic.keys()
    used = "".join(file.read_text(encoding="utf-8") for file in STATIC.iterdir() if "strings" not in file.name)
    for key in english:
        family = key.rpartition(".")[0]
        assert f'"{key}"' in used or f"`{family}.${{" in used, f"{key} is not used"
        values = {text: set(re.findall(r"\{(\w+)\}", text)) for text in (english[key], arabic[key])}
        assert len({frozenset(found) for found in values.values()}) == 1, key


def test_the_page_has_every_note_with_its_fields_in_both_languages() -> None:
    for name, language in (("strings_en.js", words.LANGUAGES[0]), ("strings_ar.js", words.LANGUAGES[1])):
        found = {key.removeprefix("note."): text for key, text in _strings(name).items() if key.startswith("note.")}
        sentences = words.SENTENCES[language]
        assert found.keys() == sentences.keys()
        for code, entry in sentences.items():
            forms = [entry] if isinstance(entry, str) else list(entry.values())
            fields = {field for form in forms for field in re.findall(r"\{(\w+)\}", form)}
            assert set(re.findall(r"\{(\w+)\}", found[code])) == fields, code
    assert {
        key.removeprefix("window.") for key in _strings("strings_ar.js") if key.startswith("window.")
    } == PRESETS.keys()


def test_notes_are_shown_in_the_interfaces_language(browser: Browser, server: Any, tmp_path: Path) -> None:
    values = np.linspace(1000, 5000, 128 * 128).astype(np.uint16).reshape(128, 128)
    Image.fromarray(values).save(tmp_path / "deep.png")
    for language in words.LANGUAGES:
        with opened(browser, server.url, server.key, language=language) as page:
            attach(page, tmp_path / "deep.png", ct(tmp_path))
            notes = page.locator(".card .notes li")
            page.locator(".card summary").first.click()
            shown = notes.first.inner_text().translate(ISOLATES)
            scaled = note("scaled_16_bit", low=1000, high=5000).text(language)
            assert shown == f"{scaled[0].upper()}{scaled[1:]}."
            warning = page.locator(".card .warnings li").inner_text().translate(ISOLATES)
            burned = note("burned_in_text").text(language)
            assert warning == f"{burned[0].upper()}{burned[1:]}."
            window = {"en": "Window: center 40, width 400.", "ar": "النافذة: المركز 40، العرض 400."}[language]
            assert window in page.locator(".card .tags").last.inner_text().translate(ISOLATES)
            page.locator(".card select").select_option("lung")
            expect(page.locator(".card .tags").last).to_contain_text("\u200e-600")


def test_a_note_that_the_page_does_not_know_is_the_servers_text(browser: Browser, server: Any, samples: Path) -> None:
    with opened(browser, server.url, server.key, language="ar") as page:

        def answer_later_version(route: Any) -> None:
            seen = route.fetch().json()
            seen["warnings"] = [{"code": "__proto__", "fields": {"n": 1}, "text": "a later warning"}]
            route.fulfill(json=seen)

        page.route("**/api/look", answer_later_version)
        attach(page, samples / "normal.png")
        assert page.locator(".card .warnings li").inner_text() == "a later warning"
