"""An answer's text as its tokens come, judged by what the whole text is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bimedix_edge.engine.answer_text import AnswerText

# few letters, so that stop texts come, and begin and do not go on
WORDS = st.text(alphabet="abقš", max_size=40)


@given(WORDS, st.lists(st.text(alphabet="abقš", min_size=1, max_size=4), max_size=3), st.randoms())
def test_what_is_passed_on_piece_by_piece_is_the_text_up_to_the_first_stop(text, stop, chance) -> None:
    data = text.encode()
    cuts = sorted(chance.randint(0, len(data)) for _ in range(8))
    pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    answer, emitted = AnswerText(stop), ""
    for piece in pieces:
        emitted += answer.add(piece)
        if answer.stopped:
            break
    # the first piece that completes a stop text decides: a longer one may begin earlier, and be incomplete by then
    known = (data[:cut].decode(errors="ignore") for cut in (*cuts, len(data)))
    first = next((part for part in known if any(one in part for one in stop)), text)
    ends = [first.find(one) for one in stop if one in first]
    expected = first[: min(ends)] if ends else text
    assert answer.stopped == bool(ends)
    assert answer.finish() == expected
    assert expected.startswith(emitted)
    assert answer.stopped <= (emitted == expected)


@pytest.mark.parametrize(
    ("pieces", "text"), [(["ق".encode()[:1]], "\ufffd"), ([b"a", "ق".encode()[:1], b"b"], "a\ufffdb")]
)
def test_a_character_that_stays_incomplete_is_shown_as_that(pieces: list[bytes], text: str) -> None:
    answer = AnswerText()
    for piece in pieces:
        answer.add(piece)
    assert answer.finish() == text
