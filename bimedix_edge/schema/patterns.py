"""JSON Schema's `pattern`, as far as all dialects of regular expressions agree on it.

ECMA-262, Python's `re` and the engine that enforces the grammar read the same pattern differently: what a digit is,
where a line ends, what a bracket inside a class means. This module therefore parses a pattern and rewrites it, so that
enforced text matches in each dialect. A pattern that cannot be rewritten is an error that names the construct.
"""

from __future__ import annotations

from bimedix_edge.errors import SchemaError

__all__ = ["MAX_PATTERN_CHARACTERS", "MAX_REPETITIONS", "portable_pattern"]

MAX_PATTERN_CHARACTERS = 500
MAX_REPETITIONS = 1000
_MAX_GROUP_DEPTH = 16

# the ASCII members, which all dialects share
_CLASSES = {"d": r"0-9", "w": r"0-9A-Za-z_", "s": r"\x{20}\x{9}\x{a}\x{b}\x{c}\x{d}"}
_CONTROLS = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}
_HEX_DIGITS = {"x": 2, "u": 4}
# ECMA-262's line terminators; Python's dot excludes only the first
_LINE_ENDS = r"\x{a}\x{d}\x{2028}\x{2029}"
# Excluded from every class: with all control characters in a class, llguidance 1.9 lets `"` and `\` through although
# the class excludes them, and no answer needs these characters.
_CONTROLS_BUT_BLANKS = r"\x{0}-\x{8}\x{b}\x{c}\x{e}-\x{1f}\x{7f}"
_SYNTAX = frozenset(r"^$\.*+?()[]{}|")


def portable_pattern(pattern: str, path: str) -> str:
    """Return a pattern that matches only what `pattern` matches in every dialect.

    Args:
        pattern: Regular expression, which matches anywhere in the string unless it starts with `^` or ends with `$`.
            It may have groups, alternatives, classes, quantifiers, `.` and escapes for digits, words, blanks and
            characters.
        path: Place in the schema, for an error's message.

    Raises:
        SchemaError: The pattern is damaged or too long, or has another construct.

    Source: JSON Schema Core 2020-12, section 6.4, which recommends nearly this subset.
    """
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        raise SchemaError(
            f"The pattern at {path} has {len(pattern)} characters, and at most {MAX_PATTERN_CHARACTERS} are allowed. "
            "Shorten it."
        )
    return _Pattern(pattern, path).whole()


class _Pattern:
    """A parser of one pattern; `_at` is the index of the next character."""

    def __init__(self, text: str, path: str) -> None:
        self._text = text
        self._path = path
        self._at = 0

    def whole(self) -> str:
        start, end = self._take("^"), self._text.endswith("$") and not self._text.endswith("\\$")
        if end:
            self._text = self._text[:-1]
        body, n_alternatives = self._alternatives(0)
        if self._at < len(self._text):
            raise self._refusal("`)` without its `(`")
        if n_alternatives > 1 and (start or end):
            # an anchor belongs to one alternative only, which is rarely the intention
            raise self._refusal("an anchor beside `|` outside of a group")
        return f"{'^' if start else ''}(?:{body}){'$' if end else ''}"

    def _alternatives(self, depth: int) -> tuple[str, int]:
        if depth > _MAX_GROUP_DEPTH:
            raise self._refusal(f"groups more than {_MAX_GROUP_DEPTH} deep")
        branches = [self._sequence(depth)]
        while self._take("|"):
            branches.append(self._sequence(depth))
        return "|".join(branches), len(branches)

    def _sequence(self, depth: int) -> str:
        parts = []
        while self._at < len(self._text) and self._text[self._at] not in "|)":
            parts.append(self._atom(depth) + self._quantifier())
        return "".join(parts)

    def _atom(self, depth: int) -> str:
        char = self._next()
        if char == "(":
            return self._group(depth)
        if char == "[":
            return self._class()
        if char == ".":
            return _char_class(_LINE_ENDS, negated=True)
        if char == "\\":
            return _char_class(self._escape(), negated=False)
        if char in _SYNTAX:
            raise self._refusal(f"`{char}` at character {self._at}")
        return _literal(char)

    def _group(self, depth: int) -> str:
        if self._take("?") and not self._take(":"):
            raise self._refusal("a group that starts with `(?`")
        body, _ = self._alternatives(depth + 1)
        if not self._take(")"):
            raise self._refusal("`(` without its `)`")
        return f"(?:{body})"

    def _quantifier(self) -> str:
        start = self._at
        if self._take("{"):
            bounds = self._until("}").split(",")
            if len(bounds) > 2 or not all(part.isascii() and (part.isdecimal() or not part) for part in bounds):
                raise self._refusal("a `{` that is no repetition; write `\\{`")
            if not bounds[0] or any(len(part) > 4 or int(part or 0) > MAX_REPETITIONS for part in bounds):
                raise self._refusal(f"a repetition that is not from 0 to {MAX_REPETITIONS}")
            if len(bounds) == 2 and bounds[1] and int(bounds[1]) < int(bounds[0]):
                raise self._refusal("a repetition whose end is below its start")
        elif not (self._take("*") or self._take("+") or self._take("?")):
            return ""
        written = self._text[start : self._at]
        self._take("?")  # the order of matches does not matter, only whether there is one
        return written

    def _class(self) -> str:
        negated = self._take("^")
        parts = []
        while not self._take("]"):
            low = self._member(negated=negated)
            if self._text[self._at : self._at + 1] == "-" and self._text[self._at + 1 : self._at + 2] not in ("]", ""):
                self._at += 1
                high = self._member(negated=negated)
                if low.count("\\x") != 1 or high.count("\\x") != 1 or _code(low) > _code(high):
                    raise self._refusal("a range in `[]` without a start and a later end")
                parts.append(f"{low}-{high}")
            else:
                parts.append(low)
        if not parts:
            raise self._refusal("an empty `[]`")
        return _char_class("".join(parts), negated=negated)

    def _member(self, *, negated: bool) -> str:
        char = self._next()
        if char != "\\":
            return _literal(char)
        if negated and self._text[self._at : self._at + 1] in ("d", "w", "s"):
            # dialects differ outside ASCII, and the negated class would allow characters that one of them excludes
            raise self._refusal("a class escape in `[^]`; list the characters")
        return self._escape()

    def _escape(self) -> str:
        """Return the escape after a backslash as members of a class."""
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _CONTROLS:
            return _literal(_CONTROLS[char])
        if char in _HEX_DIGITS:
            digits = self._text[self._at : self._at + _HEX_DIGITS[char]]
            if len(digits) < _HEX_DIGITS[char] or not all(digit in "0123456789abcdefABCDEF" for digit in digits):
                raise self._refusal(f"`\\{char}` without {_HEX_DIGITS[char]} hexadecimal digits")
            self._at += len(digits)
            return _literal(chr(int(digits, 16)))
        if char.isascii() and not char.isalnum():
            return _literal(char)
        raise self._refusal(f"`\\{char}`")

    def _take(self, char: str) -> bool:
        taken = self._text[self._at : self._at + 1] == char
        self._at += taken
        return taken

    def _next(self) -> str:
        if self._at == len(self._text):
            raise self._refusal("an end where more must follow")
        self._at += 1
        return self._text[self._at - 1]

    def _until(self, char: str) -> str:
        end = self._text.find(char, self._at)
        if end < 0:
            raise self._refusal(f"no `{char}` after its start")
        found = self._text[self._at : end]
        self._at = end + 1
        return found

    def _refusal(self, what: str) -> SchemaError:
        return SchemaError(
            f"The pattern at {self._path} cannot be enforced: it has {what}. Rewrite it, or leave it out and check the "
            "answer yourself."
        )


def _char_class(members: str, *, negated: bool) -> str:
    return f"[^{members}{_CONTROLS_BUT_BLANKS}]" if negated else f"[{members}&&[^{_CONTROLS_BUT_BLANKS}]]"


def _literal(char: str) -> str:
    if "\ud800" <= char <= "\udfff":
        raise SchemaError("A pattern has half of a surrogate pair. Write the whole character.")
    return f"\\x{{{ord(char):x}}}"


def _code(literal: str) -> int:
    return int(literal[3:-1], 16)
