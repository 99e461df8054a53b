"""Nothing that a file, a header or a model says is ever run, loaded or sent anywhere by the page."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect
from server.pages import answer, attach, dictate, opened, send

from bimedix_edge.imaging import checks, dicom_tags
from bimedix_edge.server.front import page as page_module

if TYPE_CHECKING:
    from playwright.sync_api import Browser

STATIC = Path(page_module.__file__).parents[1] / "static"
MAX_LINES = 300
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
# what the page itself is made of; nothing else may appear in it, with no listener as an attribute
FOREIGN = """
() => [...document.querySelectorAll('*')].filter((element) =>
  ['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'BASE', 'LINK', 'META', 'STYLE', 'A', 'TEMPLATE', 'MATH', 'VIDEO', 'AUDIO']
    .includes(element.tagName.toUpperCase()) && !element.matches('head > *, #skip') ||
  [...element.attributes].some(({ name, value }) => name.startsWith('on') || /^\\s*javascript:/i.test(value))
).map((element) => element.outerHTML)
"""


@pytest.fixture(params=["as served", "without its policy"])
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return options of a browser: the policy is a second wall, so the first is tested without it, too."""
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
        assert shown.count("alert(1)") == hostile.count("alert(1)")  # all of it is there, as text
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
        told = {"png": look, "sha256": "0" * 64, "width_px": 9, "height_px": 9, "n_frames": 1}
        told |= {"notes": PAYLOADS, "warnings": PAYLOADS, "tags": tags, "presets": PAYLOADS}
        page.route("**/api/look", lambda route: route.fulfill(json=told))
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
        expect(page.locator(".card[data-state=failed]")).to_have_count(len(names))
        assert "alert(1)" in page.locator(".card .name").nth(3).inner_text()
        assert page.evaluate(FOREIGN) == []
        page.wait_for_timeout(300)


def test_the_browser_refuses_what_the_page_never_does(browser: Browser, server: Any) -> None:
    """The second wall stands: Trusted Types and the policy refuse a script that some later change lets in."""
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


def test_warnings_are_known_by_their_beginnings() -> None:
    """A warning that is worded anew would be English in the Arabic page."""
    known = re.findall(r"\[/\^([a-z ]+)", (STATIC / "server_words.js").read_text(encoding="utf-8"))
    assert len(known) == 5
    sources = "".join(Path(str(module.__file__)).read_text(encoding="utf-8") for module in (checks, dicom_tags))
    for beginning in known:
        assert re.search(f'f?"{beginning.rstrip()}', sources), beginning
