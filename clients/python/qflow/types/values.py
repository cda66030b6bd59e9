"""Values as exact JSON text: read strictly, written without loss."""

# The walk is one table over what JSON has.
# ruff: noqa: C901

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, TypeAlias

DEPTH_MAX: Final = 64
DIGITS_MAX: Final = 4_300
_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")
# Cheap looks at the text that say whether its strings need to be walked at all.
_ESCAPED_TROUBLE: Final = re.compile(r"\\u(?:0000|[dD][89a-fA-F])")


# Where a part stands: its parent's link, and its key there. None is the value itself.
_Link: TypeAlias = "tuple[_Link, str | int] | None"


class ValueTextError(ValueError):
    """A text is not a JSON value that Qflow keeps; `path` says where, `message` what."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.message = message
        self.path = path


class _Fault:
    """Stands where a part of the value cannot be kept, until the walk has found its path."""

    __slots__ = ("message",)

    def __init__(self, message: str) -> None:
        self.message = message


def parse_strict(text: str | bytes, *, depth_max: int = DEPTH_MAX) -> object:
    """Parse JSON text, and refuse what some reader of it would lose.

    Refused are NaN and Infinity, numbers beyond a double, integers of more than 4,300 digits,
    nesting deeper than 64, a key that stands twice, NUL and lone surrogates in text.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            raise ValueTextError(f"is not UTF-8 (byte {error.start})") from None
    faults: list[_Fault] = []
    try:
        value = _decoder(faults).decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise ValueTextError(f"is not JSON: {error.msg} ({where})") from None
    except RecursionError:
        raise ValueTextError(f"is nested deeper than {depth_max}") from None
    deep = text.count("[") + text.count("{") > depth_max
    if faults or deep or _ESCAPED_TROUBLE.search(text) or _SURROGATE.search(text):
        _walk(value, depth_max)
    return value


def dump_exact(value: object, *, depth_max: int = DEPTH_MAX) -> str:
    """Write a value as JSON text that `parse_strict` reads back to the same value.

    Takes what JSON has: text, int, float, bool, None, lists, tuples and dicts with text keys.
    """
    _walk(value, depth_max)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def child(path: str, key: str | int) -> str:
    """Return the path of an item or a member, as messages show it: `rows[2].name`."""
    if isinstance(key, int):
        return f"{path}[{key}]"
    if not _IDENTIFIER.fullmatch(key):
        return f"{path}[{json.dumps(key)[:80]}]"
    return f"{path}.{key}" if path else key


def _decoder(faults: list[_Fault]) -> json.JSONDecoder:
    def fault(message: str) -> _Fault:
        faults.append(_Fault(message))
        return faults[-1]

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


def _walk(value: object, depth_max: int) -> None:
    """Visit every part without recursion; raise at the first that cannot be kept.

    A path is written only for a fault: on the way it is a chain of links to the parents.
    """
    stack: list[tuple[object, _Link, int]] = [(value, None, 0)]
    while stack:
        here, link, depth = stack.pop()
        match here:
            case str():
                _check_text(here, link)
            case bool() | None:
                pass
            case int():
                if here.bit_length() > 3 * DIGITS_MAX and abs(here) >= 10**DIGITS_MAX:
                    message = f"is an integer of more than {DIGITS_MAX} digits"
                    raise ValueTextError(message, _path(link))
            case float():
                if not math.isfinite(here):
                    raise ValueTextError(f"is {here}, which JSON does not have", _path(link))
            case list() | tuple() | dict():
                if depth >= depth_max:
                    raise ValueTextError(f"is nested deeper than {depth_max}", _path(link))
                stack.extend(_children(here, link, depth + 1))
            case _Fault():
                raise ValueTextError(here.message, _path(link))
            case _:
                message = f"is of {type(here).__name__}, which JSON does not have"
                raise ValueTextError(message, _path(link))


def _children(
    here: list[Any] | tuple[Any, ...] | dict[Any, Any], link: _Link, depth: int
) -> list[tuple[object, _Link, int]]:
    if not isinstance(here, dict):
        return [(item, (link, index), depth) for index, item in enumerate(here)]
    for key in here:
        if not isinstance(key, str):
            message = f"has a key of {type(key).__name__}; keys are text"
            raise ValueTextError(message, _path(link))
        _check_text(key, link)
    return [(item, (link, key), depth) for key, item in here.items()]


def _path(link: _Link) -> str:
    keys: list[str | int] = []
    while link is not None:
        link, key = link
        keys.append(key)
    path = ""
    for key in reversed(keys):
        path = child(path, key)
    return path


def _check_text(text: str, link: _Link) -> None:
    if "\0" in text:
        raise ValueTextError("has a NUL character in text", _path(link))
    if _SURROGATE.search(text):
        raise ValueTextError("has a lone surrogate in text", _path(link))
