r"""The filter language: a subset of AIP-160, parsed by hand with limits into frozen values.

    name : "load" AND -tags:"old" AND (python_version = "3.12" OR update_time > 2026-01-01)

OR binds tighter than AND, as in AIP-160; terms without either between them must all match. There
are no patterns: `*`, `%`, `_` and `\` are literal, except that `\` in quotes escapes the next
character.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, NoReturn

from services.kit.errors import FieldViolation, InvalidArgument

FILTER_CHARS_MAX: Final = 2_000
DEPTH_MAX: Final = 16
TERMS_MAX: Final = 64

OPERATORS: Final = ("!=", "<=", ">=", "=", "<", ">", ":")
_QUOTES: Final = "\"'"
_SPACE: Final = " \t\r\n"
# A word ends at any of these, a value only at space, quotes and brackets, so that a time needs no
# quotes.
_ENDS_WORD: Final = frozenset("()\"'=<>:!" + _SPACE)
_ENDS_VALUE: Final = frozenset("()\"'" + _SPACE)
_KEYWORDS: Final = frozenset({"AND", "OR", "NOT"})


@dataclass(frozen=True, slots=True)
class Word:
    """A text that must be found in the row."""

    text: str
    place: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A comparison of a field with a value, as written."""

    name: str
    operator: str
    value: str
    place: int = field(default=0, compare=False)
    value_place: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Not:
    """A term that must not match."""

    term: Expression


@dataclass(frozen=True, slots=True)
class And:
    """Two or more terms that must all match."""

    terms: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Or:
    """Two or more terms of which one must match."""

    terms: tuple[Expression, ...]


Expression = Word | Comparison | Not | And | Or


def refused(
    reason: str, place: int, said: str, *, expected: str = "", known_fields: str = ""
) -> InvalidArgument:
    """Return the error for an unusable filter; `place` counts characters from 0."""
    text = f"filter, character {place + 1}: {said}"
    return InvalidArgument(
        reason,
        text,
        fields=[FieldViolation("filter", f"character {place + 1}: {said}", reason)],
        position=place + 1,
        expected=expected,
        known_fields=known_fields,
    )


def parse(text: str) -> Expression | None:
    """Parse a filter; None for an empty one. Errors are `InvalidArgument` with their position.

    The time is proportional to the length, which is limited, as are depth and number of terms.
    """
    if len(text) > FILTER_CHARS_MAX:
        said = f"a filter has at most {FILTER_CHARS_MAX} characters"
        raise refused("FILTER_TOO_LONG", FILTER_CHARS_MAX, said)
    if "\0" in text:
        raise refused("FILTER_SYNTAX", text.index("\0"), "a NUL character is in no text")
    reader = _Reader(text)
    reader.skip_space()
    if reader.is_over():
        return None
    expression = reader.expression(depth=0)
    if not reader.is_over():
        reader.fail("the end, AND, OR or another term")
    return expression


class _Reader:
    """One pass over the text; each method also consumes the space after what it reads."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._terms = 0

    def is_over(self) -> bool:
        return self._at >= len(self._text)

    def expression(self, depth: int) -> Expression:
        """Read terms joined by AND, or by space only, which means the same."""
        terms = [self._alternatives(depth)]
        while not self.is_over() and self._peek() != ")":
            self._keyword("AND")
            terms.append(self._alternatives(depth))
        return terms[0] if len(terms) == 1 else And(tuple(terms))

    def skip_space(self) -> None:
        while not self.is_over() and self._peek() in _SPACE:
            self._at += 1

    def fail(self, expected: str) -> NoReturn:
        """Raise for a syntax error at this position."""
        found = "the end" if self.is_over() else repr(self._text[self._at : self._at + 20])
        said = f"expected {expected}, found {found}"
        raise refused("FILTER_SYNTAX", self._at, said, expected=expected)

    def _alternatives(self, depth: int) -> Expression:
        terms = [self._term(depth)]
        while self._keyword("OR"):
            terms.append(self._term(depth))
        return terms[0] if len(terms) == 1 else Or(tuple(terms))

    def _term(self, depth: int) -> Expression:
        """Read a word, a comparison or an expression in brackets, perhaps negated."""
        if depth > DEPTH_MAX:
            said = f"a filter is at most {DEPTH_MAX} levels deep"
            raise refused("FILTER_TOO_DEEP", self._at, said)
        if self._minus() or self._keyword("NOT"):
            return Not(self._term(depth + 1))
        if self.is_over() or self._peek() == ")" or self._next_keyword():
            self.fail('a field, a word, a text in quotes, "(", NOT or "-"')
        if self._peek() != "(":
            return self._simple()
        self._at += 1
        self.skip_space()
        inside = self.expression(depth + 1)
        if self.is_over():
            self.fail('")"')
        self._at += 1
        self.skip_space()
        return inside

    def _simple(self) -> Expression:
        place = self._at
        self._terms += 1
        if self._terms > TERMS_MAX:
            raise refused("FILTER_TOO_LONG", place, f"a filter has at most {TERMS_MAX} terms")
        quoted = self._peek() in _QUOTES
        word = self._quoted() if quoted else self._run(_ENDS_WORD)
        if not quoted and not word:
            self.fail("a field or a word before the operator; put text with such signs in quotes")
        self.skip_space()
        operator = self._operator()
        if not operator:
            return Word(word, place)
        if quoted:
            raise refused("FILTER_SYNTAX", place, "a field is written without quotes")
        value_place = self._at
        if self.is_over() or self._peek() in "()":
            self.fail("a value")
        value = self._quoted() if self._peek() in _QUOTES else self._run(_ENDS_VALUE)
        self.skip_space()
        return Comparison(word, operator, value, place, value_place)

    def _operator(self) -> str:
        for operator in OPERATORS:
            if self._text.startswith(operator, self._at):
                self._at += len(operator)
                self.skip_space()
                return operator
        if not self.is_over() and self._peek() == "!":
            self.fail('"!="')
        return ""

    def _quoted(self) -> str:
        """Read a text in either kind of quotes; a backslash escapes the next character."""
        begin, quote = self._at, self._peek()
        self._at += 1
        taken: list[str] = []
        while not self.is_over():
            each = self._peek()
            self._at += 1
            if each == quote:
                return "".join(taken)
            if each == "\\" and not self.is_over():
                each = self._peek()
                self._at += 1
            taken.append(each)
        raise refused("FILTER_SYNTAX", begin, "the text in quotes does not end", expected=quote)

    def _run(self, ends: frozenset[str]) -> str:
        begin = self._at
        while not self.is_over() and self._peek() not in ends:
            self._at += 1
        return self._text[begin : self._at]

    def _minus(self) -> bool:
        if self.is_over() or self._peek() != "-":
            return False
        self._at += 1
        return True

    def _next_keyword(self) -> str:
        """Return the keyword at this position, if there is one as a separate word; else empty."""
        end = self._at
        while end < len(self._text) and self._text[end] not in _ENDS_WORD:
            end += 1
        word = self._text[self._at : end]
        return word if word in _KEYWORDS else ""

    def _keyword(self, word: str) -> bool:
        if self._next_keyword() != word:
            return False
        self._at += len(word)
        self.skip_space()
        return True

    def _peek(self) -> str:
        return self._text[self._at]
