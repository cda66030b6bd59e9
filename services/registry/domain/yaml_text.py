"""YAML of plain values, parsed event by event, so that no document can construct objects."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final

import yaml

from services.registry.domain.document import (
    DEPTH_MAX,
    FAULTS_MAX,
    ITEMS_MAX,
    DocumentError,
    Fault,
    Item,
    Number,
    Plain,
    Value,
    is_number,
    joined,
)

_WORDS: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(("null", "Null", "NULL", "~", "")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
# Numbers in some YAML parsers but not in JSON: rejected rather than guessed.
_NUMBER_ELSEWHERE: Final = re.compile(
    r"[-+]?(?:0[xob][0-9a-f_]+|[0-9][0-9_]*(?:\.[0-9_]*)?(?:e[-+]?[0-9]+)?"
    r"|\.[0-9][0-9_]*(?:e[-+]?[0-9]+)?|\.inf|\.nan)",
    re.IGNORECASE,
)
# Text that needs no quotes in any version of YAML.
_BARE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*(?: [A-Za-z0-9_./-]+)*")
_NOT_BARE: Final = frozenset(["null", "true", "false", "yes", "no", "on", "off", "y", "n"])
_WITHOUT_LIMIT: Final = -1


def read_yaml(text: str) -> Item:
    """Parse YAML restricted to JSON's values: no tags, anchors, aliases or duplicate keys.

    Raises DocumentError with all faults; nesting is limited to 64 levels.
    """
    reader = _Reader(text)
    try:
        item = reader.document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (0, 0)
        said = " ".join(filter(None, (error.context, error.problem)))
        fault = Fault(line, column, "", "TEXT_INVALID", f"is not YAML: {said}")
        raise DocumentError([*reader.faults, fault]) from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        said = str(error).splitlines()[0]
        fault = Fault(0, 0, "", "TEXT_INVALID", f"is not YAML: {said}")
        raise DocumentError([*reader.faults, fault]) from None
    if reader.faults:
        raise DocumentError(reader.faults)
    return item


class _Reader:
    """Consumes parser events; records faults and continues where it can."""

    def __init__(self, text: str) -> None:
        self.faults: list[Fault] = []
        self._events: Iterator[yaml.Event] = yaml.parse(text, Loader=yaml.CSafeLoader)
        self._items = 0

    def document(self) -> Item:
        next(self._events)
        if isinstance(next(self._events), yaml.StreamEndEvent):
            raise DocumentError([Fault(1, 1, "", "TEXT_INVALID", "the text is empty")])
        item = self._item(next(self._events), "", 0)
        next(self._events)
        end = next(self._events)
        if not isinstance(end, yaml.StreamEndEvent):
            self._add(end, "", "TEXT_INVALID", "a second document begins here")
        return item

    def _add(self, event: yaml.Event, path: str, code: str, message: str) -> None:
        self.faults.append(Fault(*_place(event), path, code, message))
        if len(self.faults) >= FAULTS_MAX:
            raise DocumentError(self.faults)

    def _item(self, event: yaml.Event, path: str, depth: int) -> Item:
        self._items += 1
        if depth > DEPTH_MAX or self._items > ITEMS_MAX:
            limit = f"is nested deeper than {DEPTH_MAX}"
            if depth <= DEPTH_MAX:
                limit = f"the text holds more than {ITEMS_MAX} values"
            self._add(event, path, "TEXT_INVALID", limit)
            raise DocumentError(self.faults)
        value: Value = None
        if isinstance(event, yaml.AliasEvent):
            self._add(event, path, "YAML_ALIAS", "aliases are refused; write the value out")
        else:
            self._refuse_extras(event, path)
        match event:
            case yaml.ScalarEvent():
                value = self._scalar(event, path)
            case yaml.SequenceStartEvent():
                value = self._sequence(path, depth)
            case yaml.MappingStartEvent():
                value = self._mapping(path, depth)
        return Item(value, *_place(event))

    def _refuse_extras(self, event: yaml.Event, path: str) -> None:
        if getattr(event, "anchor", None) is not None:
            self._add(event, path, "YAML_ANCHOR", "anchors are refused; write the value out")
        if getattr(event, "tag", None) is not None:
            self._add(event, path, "YAML_TAG", "tags are refused; write plain values")

    def _scalar(self, event: yaml.ScalarEvent, path: str) -> Value:
        text: str = event.value
        if "\0" in text:
            self._add(event, path, "TEXT_INVALID", "holds a NUL character")
        if event.style is not None and event.style != "":
            return text
        if text in _WORDS:
            return _WORDS[text]
        if is_number(text):
            return Number(text)
        if _NUMBER_ELSEWHERE.fullmatch(text):
            message = "write a number as JSON does, or a text in quotes"
            self._add(event, path, "NUMBER_INVALID", message)
        return text

    def _sequence(self, path: str, depth: int) -> list[Item]:
        items: list[Item] = []
        while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
            items.append(self._item(event, f"{path}[{len(items)}]", depth + 1))
        return items

    def _mapping(self, path: str, depth: int) -> dict[str, Item]:
        members: dict[str, Item] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            key = self._key(event, path, depth)
            here = joined(path, key)
            if key in members:
                self._add(event, here, "KEY_TWICE", "occurs a second time")
            members[key] = self._item(next(self._events), here, depth + 1)
        return members

    def _key(self, event: yaml.Event, path: str, depth: int) -> str:
        if isinstance(event, yaml.ScalarEvent):
            self._refuse_extras(event, path)
            if "\0" in event.value:
                self._add(event, path, "TEXT_INVALID", "holds a NUL character")
            return str(event.value)
        self._add(event, path, "KEY_INVALID", "a key is a text")
        self._item(event, path, depth + 1)  # to skip to its end
        return ""


def _place(event: yaml.Event) -> tuple[int, int]:
    mark = event.start_mark
    assert mark is not None
    return mark.line + 1, mark.column + 1


def to_yaml(value: Plain) -> str:
    """Return a value as block-style YAML; Inline mappings, and all within them, are on one line."""
    written: str = yaml.emit(
        _document(value), Dumper=yaml.CSafeDumper, allow_unicode=True, width=_WITHOUT_LIMIT
    )
    return written


class Inline(dict[str, Plain]):
    """A mapping that is written on one line."""


def _document(value: Plain) -> Iterator[yaml.Event]:
    yield yaml.StreamStartEvent()
    yield yaml.DocumentStartEvent(explicit=False)
    yield from _events(value, inline=False)
    yield yaml.DocumentEndEvent(explicit=False)
    yield yaml.StreamEndEvent()


def _events(value: Plain, *, inline: bool) -> Iterator[yaml.Event]:
    match value:
        case dict():
            flow = inline or isinstance(value, Inline) or not value
            yield yaml.MappingStartEvent(None, None, True, flow_style=flow)
            for key, member in value.items():
                yield _text(key, inline=True)
                yield from _events(member, inline=flow)
            yield yaml.MappingEndEvent()
        case list():
            flow = inline or not value
            yield yaml.SequenceStartEvent(None, None, True, flow_style=flow)
            for each in value:
                yield from _events(each, inline=flow)
            yield yaml.SequenceEndEvent()
        case str() if not isinstance(value, Number):
            yield _text(value, inline=inline)
        case _:
            yield _scalar(_word(value), None)


def _word(value: Plain) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case _:
            return str(value)


def _text(text: str, *, inline: bool) -> yaml.ScalarEvent:
    if _BARE.fullmatch(text) and text.lower() not in _NOT_BARE:
        return _scalar(text, None)
    if "\n" in text and not inline:
        return _scalar(text, "|")
    return _scalar(text, "'" if text.isprintable() else '"')


def _scalar(text: str, style: str | None) -> yaml.ScalarEvent:
    return yaml.ScalarEvent(None, None, (style is None, style is not None), text, style=style)
