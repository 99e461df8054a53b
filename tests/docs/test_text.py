"""What every document must be: short lines, links and paths that exist, and no word of the private dialect."""

from __future__ import annotations

import re

import pytest
from docs.documents import LANGUAGES, ROOT, Document, documents

MOST_LINES, MOST_CHARACTERS = 120, 119
# words that say a thing as a riddle
DIALECT = re.compile(r"so many|whoever|is told|are told|anew|none is")
# a code span that can only be a file or a folder of the repository
_PATH = re.compile(r"[\w.-]+(?:/[\w.-]+)*/?")
_SOURCE = re.compile(r"\.(py|cpp|h|c|js|css|html)$")
# parts of paths that are no files here: a user's, a bundle's, a repository's of the hub
_FOREIGN = re.compile(r"^(\.venv|https?:|HF_|ORG/)")
_FOLDERS = ("", "bimedix_edge/", "converters/", "kernels/", "tests/")

all_documents = pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)


@all_documents
def test_lines_are_short(document: Document) -> None:
    if document.name == "README.md":
        assert len(document.lines) <= MOST_LINES
        lines = document.lines
    else:
        lines = tuple(line for line in document.prose if not line.startswith("|"))
    assert [line for line in lines if len(line) > MOST_CHARACTERS] == []


@all_documents
def test_links_lead_somewhere(document: Document) -> None:
    anchors = {other.path: other.anchors for other in documents()}
    for link in document.links:
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        path = (document.path.parent / target).resolve() if target else document.path
        assert path.exists(), link
        assert not anchor or anchor in anchors[path], link


@all_documents
def test_paths_exist(document: Document) -> None:
    folders = [document.path.parent, *(ROOT / folder for folder in _FOLDERS)]
    for span in document.spans:
        if not _PATH.fullmatch(span) or _FOREIGN.match(span):
            continue
        inside = "/" in span.rstrip("/") and "." in span.rpartition("/")[2]
        if inside or span.endswith("/") or _SOURCE.search(span):
            assert any((folder / span).exists() for folder in folders), f"{document.name} names {span}"


@all_documents
def test_the_language_is_plain(document: Document) -> None:
    assert [line for line in document.prose if DIALECT.search(line)] == []


@all_documents
def test_every_block_says_what_it_is(document: Document) -> None:
    assert {block.language for block in document.blocks} <= LANGUAGES
