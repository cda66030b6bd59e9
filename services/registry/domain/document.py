"""JSON text parsed into items with their positions, and values written back canonically.

A number keeps its digits, so that it is written exactly as it was read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from json.decoder import scanstring  # type: ignore[attr-defined]  # public by use, not by name
from typing import Final, TypeAlias

DEPTH_MAX: Final = 64
ITEMS_MAX: Final = 1_000_000
FAULTS_MAX: Final = 100
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_WORDS: Final = (("true", True), ("false", False), ("null", None))


class Number(str):
    """A number, as the digits of its text."""

    __slots__ = ()


# A value without positions, for writing.
Plain: TypeAlias = "str | Number | int | bool | list[Plain] | dict[str, Plain] | None"
Value: TypeAlias = "str | Number | bool | list[Item] | dict[str, Item] | None"


@dataclass(frozen=True, slots=True)
class Item:
    """A parsed value, with the line and column where it starts, both from 1."""

    value: Value
    line: int
    column: int


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault in a text and its position; `path` names the affected part."""

    line: int
    column: int
    path: str
    code: str
    message: str


class DocumentError(Exception):
    """A text cannot be parsed; holds all faults found until then."""

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(each.message for each in self.faults[:3]))


def is_number(text: str) -> bool:
    """Return whether a text is a JSON number."""
    return _NUMBER.fullmatch(text) is not None


def plain(item: Item) -> Plain:
    """Return a value without positions."""
    match item.value:
        case list(items):
            return [plain(each) for each in items]
        case dict(members):
            return {key: plain(each) for key, each in members.items()}
        case value:
            return value


def to_json(value: Plain) -> str:
    """Return a value as JSON on one line."""
    return "".join(_written(value, "", ""))


def to_json_lines(value: Plain) -> str:
    """Return a value as indented JSON, one line per member."""
    return "".join(_written(value, "\n", "  ")) + "\n"


def _written(value: Plain, line: str, step: str) -> Iterable[str]:
    match value:
        case Number():
            yield str(value)
        case dict() if value:
            yield from _group("{}", line, step, [(_key(key, step), m) for key, m in value.items()])
        case list() if value:
            yield from _group("[]", line, step, [("", each) for each in value])
        case _:
            yield json.dumps(value, ensure_ascii=False)


def _key(key: str, step: str) -> str:
    return json.dumps(key, ensure_ascii=False) + (": " if step else ":")


def _group(
    brackets: str, line: str, step: str, members: Iterable[tuple[str, Plain]]
) -> Iterable[str]:
    inner = line + step
    lead = brackets[0] + inner
    for key, member in members:
        yield lead
        yield key
        yield from _written(member, inner, step)
        lead = "," + inner
    yield line + brackets[1]


def read_json(text: str) -> Item:
    """Parse JSON; raises DocumentError for duplicate keys and for nesting deeper than 64."""
    return _JsonReader(text).document()


class _JsonReader:
    """A recursive-descent parser that tracks line numbers."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._line_start = 0
        self._counted = 0
        self._items = 0
        self._faults: list[Fault] = []

    def document(self) -> Item:
        item = self._value("", 0)
        self._skip()
        if self._at < len(self._text):
            raise self._syntax("", "there is more after the end of the value")
        if self._faults:
            raise DocumentError(self._faults)
        return item

    def _place(self) -> tuple[int, int]:
        """Return the current line and column; counts each line break once."""
        breaks = self._text.count("\n", self._counted, self._at)
        if breaks:
            self._line += breaks
            self._line_start = self._text.rfind("\n", self._counted, self._at) + 1
        self._counted = self._at
        return self._line, self._at - self._line_start + 1

    def _syntax(self, path: str, message: str) -> DocumentError:
        return DocumentError([*self._faults, Fault(*self._place(), path, "TEXT_INVALID", message)])

    def _skip(self) -> str:
        found = _SPACE.match(self._text, self._at)
        assert found is not None
        self._at = found.end()
        return self._text[self._at : self._at + 1]

    def _value(self, path: str, depth: int) -> Item:
        first = self._skip()
        place = self._place()
        self._items += 1
        if depth > DEPTH_MAX or self._items > ITEMS_MAX:
            raise self._syntax(path, _too_much(depth))
        if first == "{":
            return Item(self._members(path, depth), *place)
        if first == "[":
            return Item(self._elements(path, depth), *place)
        if first == '"':
            return Item(self._string(path), *place)
        number = _NUMBER.match(self._text, self._at)
        if number is not None:
            self._at = number.end()
            return Item(Number(number.group()), *place)
        for word, value in _WORDS:
            if self._text.startswith(word, self._at):
                self._at += len(word)
                return Item(value, *place)
        raise self._syntax(path, "a value is expected here, as JSON writes it")

    def _string(self, path: str) -> str:
        try:
            text, end = scanstring(self._text, self._at + 1, True)  # accepts no keywords
        except json.JSONDecodeError as error:
            self._at = error.pos
            raise self._syntax(path, f"the text in quotes is wrong: {error.msg}") from None
        if not _is_kept(text):
            raise self._syntax(path, "a NUL character or half of a pair of surrogates stands here")
        self._at = end
        return str(text)

    def _members(self, path: str, depth: int) -> dict[str, Item]:
        members: dict[str, Item] = {}
        self._at += 1
        if self._skip() == "}":
            self._at += 1
            return members
        while True:
            if self._skip() != '"':
                raise self._syntax(path, "a key in double quotes is expected here")
            place = self._place()
            key = self._string(path)
            here = joined(path, key)
            if key in members:
                self._faults.append(Fault(*place, here, "KEY_TWICE", "occurs a second time"))
                if len(self._faults) >= FAULTS_MAX:
                    raise DocumentError(self._faults)
            if self._skip() != ":":
                raise self._syntax(here, "a colon is expected here")
            self._at += 1
            members[key] = self._value(here, depth + 1)
            if not self._goes_on("}", path):
                return members

    def _elements(self, path: str, depth: int) -> list[Item]:
        items: list[Item] = []
        self._at += 1
        if self._skip() == "]":
            self._at += 1
            return items
        while True:
            items.append(self._value(f"{path}[{len(items)}]", depth + 1))
            if not self._goes_on("]", path):
                return items

    def _goes_on(self, end: str, path: str) -> bool:
        sign = self._skip()
        if sign not in {",", end} or not sign:
            raise self._syntax(path, f"a comma or {end} is expected here")
        self._at += 1
        return sign == ","


def joined(path: str, key: str) -> str:
    """Return the path of a member, with a long key cut."""
    return f"{path}.{key[:80]}" if path else key[:80]


def _too_much(depth: int) -> str:
    if depth > DEPTH_MAX:
        return f"is nested deeper than {DEPTH_MAX}"
    return f"the text holds more than {ITEMS_MAX} values"


def _is_kept(text: str) -> bool:
    """Return whether a text can be stored: no NUL and no lone surrogates."""
    if "\0" in text:
        return False
    return text.isascii() or not any("\ud800" <= each <= "\udfff" for each in text)
