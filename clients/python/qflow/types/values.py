"""Exact JSON texts: parsed strictly, written without loss."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

DEPTH_MAX: Final = 64
DIGITS_MAX: Final = 4_300
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# Cheap checks of the text, to skip checking each string.
_ESCAPED_TROUBLE: Final = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


class ValueTextError(ValueError):
    """A text is no JSON value that Qflow accepts; `path` says where, `message` why."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.message = message
        self.path = path


class _Fault:
    """Replaces a part that is not accepted, until its path has been found."""

    __slots__ = ("message",)

    def __init__(self, message: str) -> None:
        self.message = message


class _FaultFoundError(Exception):
    """Some part of a text is not accepted."""


def parse_strict(text: str | bytes, *, depth_max: int = DEPTH_MAX) -> object:
    """Parse JSON text; refuses what not every reader would get exactly.

    Refused are NaN and Infinity, numbers beyond a double, integers of more than 4,300 digits,
    nesting deeper than 64, duplicate keys, NUL and lone surrogates in texts.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise ValueTextError(f"is not UTF-8 (byte {error.start})") from None
    faults: list[_Fault] = []
    try:
        try:
            value = _PLAIN.decode(text)
        except _FaultFoundError:
            value = _collecting(faults).decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueTextError(f"is not JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise ValueTextError(f"is nested deeper than {depth_max}") from None
    deep = text.count("[") + text.count("{") > depth_max and _is_deeper(value, depth_max)
    if faults or deep or _ESCAPED_TROUBLE.search(text) or _SURROGATE.search(text):
        _walk(value, depth_max)
    return value


def dump_exact(value: object, *, depth_max: int = DEPTH_MAX) -> str:
    """Return a value as JSON text, which `parse_strict` parses to the same value.

    Takes str, int, float, bool, None, lists, tuples, and dicts with str keys.
    """
    _walk(value, depth_max)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def child(path: str, key: str | int) -> str:
    """Return the path of an item or a member for messages: `rows[2].name`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _IDENTIFIER.fullmatch(key):
        return f"{path}[{json.dumps(key)[:80]}]"
    return f"{path}.{key}" if path else key


def _collecting(faults: list[_Fault]) -> json.JSONDecoder:
    def fault(message: str) -> _Fault:
        faults.append(_Fault(message))
        return faults[-1]

    return _decoder(fault)


def _give_up(_message: str) -> _Fault:
    raise _FaultFoundError


def _decoder(fault: Callable[[str], _Fault]) -> json.JSONDecoder:
    """Return a decoder; `fault` makes the replacement of a part that is not accepted."""

    def real(digits: str) -> float | _Fault:
        number = float(digits)
        return number if math.isfinite(number) else fault("is a number beyond a double")

    def integer(digits: str) -> int | _Fault:
        if len(digits.lstrip("-")) > DIGITS_MAX:
            return fault(f"is an integer of more than {DIGITS_MAX} digits")
        return int(digits)

    def constant(name: str) -> _Fault:
        return fault(f"is {name}, which JSON does not have")

    def members(pairs: list[tuple[str, object]]) -> dict[str, object] | _Fault:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return fault(f"has the key {json.dumps(twice)[:80]} twice")

    return json.JSONDecoder(
        parse_float=real, parse_int=integer, parse_constant=constant, object_pairs_hook=members
    )


# Nearly every text is right, and to make a decoder costs more than to read a short one: this one
# serves all, and gives up where another must find out what is wrong, and where.
_PLAIN: Final = _decoder(_give_up)


def _is_deeper(value: object, depth_max: int) -> bool:
    """Return whether parts are nested deeper than a limit; checked level by level."""
    level = [value] if isinstance(value, list | dict) else []
    for _ in range(depth_max):
        level = [
            item
            for part in level
            for item in (part.values() if isinstance(part, dict) else part)
            if isinstance(item, list | dict)
        ]
        if not level:
            return False
    return bool(level)


def _walk(value: object, depth_max: int) -> None:
    """Visit every part without recursion; raise at the first that cannot be kept.

    What it holds meanwhile is one step per level, however wide the levels are.
    """
    path: list[str | int] = []
    levels: list[Iterator[tuple[str | int, object]]] = []
    here = value
    while True:
        fault = _fault_of(here)
        parts: Iterator[tuple[str | int, object]] | None = None
        if isinstance(here, list | tuple | dict):
            parts = iter(here.items()) if isinstance(here, dict) else enumerate(here)
            if len(levels) >= depth_max:
                fault = fault or f"is nested deeper than {depth_max}"
        if fault is not None:
            raise ValueTextError(fault, _text(path))
        if parts is not None:
            levels.append(parts)
            path.append("")
        step = None
        while levels and (step := next(levels[-1], None)) is None:
            levels.pop()
            path.pop()
        if step is None:
            return
        path[-1], here = step


def _fault_of(here: object) -> str | None:
    """Return why a part is not accepted, if it is not."""
    fault: str | None = None
    match here:
        case _Fault():
            fault = here.message
        case str():
            fault = _text_fault(here)
        case dict():
            fault = next(filter(None, map(_key_fault, here)), None)
        case list() | tuple() | bool() | None:
            pass
        case int():
            if here.bit_length() > 3 * DIGITS_MAX and abs(here) >= 10**DIGITS_MAX:
                fault = f"is an integer of more than {DIGITS_MAX} digits"
        case float():
            if not math.isfinite(here):
                fault = f"is {here}, which JSON does not have"
        case _:
            fault = f"is of {type(here).__name__}, which JSON does not have"
    return fault


def _key_fault(key: object) -> str | None:
    if not isinstance(key, str):
        return f"has a key of {type(key).__name__}; keys are text"
    return _text_fault(key)


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "has a NUL character in text"
    if _SURROGATE.search(text):
        return "has a lone surrogate in text"
    return None


def _text(path: Iterable[str | int]) -> str:
    text = ""
    for key in path:
        text = child(text, key)
    return text
