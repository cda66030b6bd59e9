"""Checks whether a JSON value is a value of a type."""

# Each function here is one table over the closed set of types.
# ruff: noqa: PLR0911

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from qflow.types.expression import expression
from qflow.types.model import (
    CARRIED,
    FLAG,
    Collection,
    Dict,
    Enum,
    Literal,
    Named,
    Record,
    Scalar,
    Tuple,
    Type,
    Union,
    VariadicTuple,
    constant_key,
    is_combined,
)
from qflow.types.order import keys_by_precision
from qflow.types.values import ValueTextError, child, parse_strict

# JSON has one kind of number: integers are accepted as floats up to where floats are exact.
FLOAT_EXACT_MAX: Final = 2**53
TIMEDELTA_SECONDS_MAX: Final = 86_399_999_999_999
_DATE: Final = r"\d{4}-\d\d-\d\d"
# Offsets of historical local times have seconds.
_OFFSET: Final = r"Z|[+-]\d\d:\d\d(:\d\d(\.\d{6})?)?"
_TIME: Final = rf"\d\d:\d\d(:\d\d(\.\d{{1,6}})?)?({_OFFSET})?"
_DATE_TEXT: Final = re.compile(_DATE, re.ASCII)
_TIME_TEXT: Final = re.compile(_TIME, re.ASCII)
_DATETIME_TEXT: Final = re.compile(f"{_DATE}[T ]{_TIME}", re.ASCII)
_DECIMAL_TEXT: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,6})?", re.ASCII)
_DECIMAL_CHARS_MAX: Final = 4_301  # a sign and as many digits as an integer may have
_TEXT_SCALARS: Final = frozenset({"bytes", "decimal", "uuid", "datetime", "date", "time"})
_SHOWN_CHARS: Final = 40  # of a wrong text, in messages
_NUMBER_TEXT: Final = re.compile(r"-?(0|[1-9]\d{0,19})(\.\d{1,20})?", re.ASCII)
_UUID_TEXT: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


@dataclass(frozen=True, slots=True)
class ValueFault:
    """Where a value does not fit its type, and what was expected."""

    path: str
    message: str


def check_value(of: Type, value: object, path: str = "") -> ValueFault | None:
    """Return the first fault of a parsed JSON value under a type, or None.

    Takes the wire form as returned by `parse_strict`: dates are texts, tuples are arrays.
    """
    match of:
        case Scalar(name=name):
            return _check_scalar(name, value, path)
        case Union(any_of=members):
            if any(check_value(member, value, path) is None for member in members):
                return None
            return _wrong(of, value, path)
        case Literal(values=values):
            keys = {constant_key(each) for each in values}
            return None if _is_constant(value, keys) else _wrong(of, value, path)
        case Enum(base=base) if base == FLAG:
            return None if is_combined(of, value) else _wrong(of, value, path)
        case Enum(members=pairs):
            keys = {constant_key(each) for _, each in pairs}
            return None if _is_constant(value, keys) else _wrong(of, value, path)
        case Named(name=name):
            return ValueFault(path, f"values of {name} cannot be written as JSON")
        case Dict():
            return _check_dict(of, value, path)
        case Record():
            return _check_record(of, value, path)
        case _:
            return _check_array(of, value, path)


def _check_scalar(name: str, value: object, path: str) -> ValueFault | None:
    if name == "any" or _SCALAR_CHECKS[name](value):
        return None
    if name == "float" and isinstance(value, int) and not isinstance(value, bool):
        return ValueFault(path, "is an integer that no float holds exactly")
    return _wrong(Scalar(name), value, path)


def _check_array(
    of: Collection | Tuple | VariadicTuple, value: object, path: str
) -> ValueFault | None:
    if not isinstance(value, list | tuple):
        return _wrong(of, value, path)
    if isinstance(of, Tuple):
        if len(of.items) != len(value):
            return ValueFault(path, f"has {len(value)} items; {expression(of)} has {len(of.items)}")
        places = zip(of.items, value, strict=True)
    else:
        places = zip([of.item] * len(value), value, strict=True)
    for index, (item_type, item) in enumerate(places):
        fault = check_value(item_type, item, child(path, index))
        if fault is not None:
            return fault
    if isinstance(of, Collection) and of.kind != "list":
        return _check_unique(value, path)
    return None


def _check_unique(items: list[Any] | tuple[Any, ...], path: str) -> ValueFault | None:
    seen: dict[Hashable, int] = {}
    for index, item in enumerate(items):
        first = seen.setdefault(comparable(item), index)
        if first != index:
            return ValueFault(child(path, index), f"repeats item {first} of a set")
    return None


def comparable(value: object) -> Hashable:
    """Return a key that is equal for elements equal in Python's sets: 1, 1.0 and True."""
    if isinstance(value, list | tuple):
        return tuple(map(comparable, value))
    if isinstance(value, dict):
        return frozenset((key, comparable(item)) for key, item in value.items())
    return value


def _check_dict(of: Dict, value: object, path: str) -> ValueFault | None:
    if not isinstance(value, dict):
        return _wrong(of, value, path)
    members = keys_by_precision(of.key.any_of) if isinstance(of.key, Union) else (of.key,)
    seen: dict[Hashable, str] = {}
    for key, item in value.items():
        read = _first_value(members, key)
        if read is _NO_KEY:
            return ValueFault(child(path, key), f"its key is not the text of {expression(of.key)}")
        first = seen.setdefault(comparable(read), key)
        if first != key:
            return ValueFault(child(path, key), f"its key is the same as {first!r}")
        fault = check_value(of.value, item, child(path, key))
        if fault is not None:
            return fault
    return None


def is_key(of: Type, text: str) -> bool:
    """Return whether a text is a valid key of a mapping with keys of this type.

    A key is its value if that is a text, else its JSON text: `1`, `null`, `[1,2]`.
    """
    return key_value(of, text) is not _NO_KEY


_NO_KEY: Final = object()


def key_value(of: Type, text: str) -> object:
    """Return the JSON value of a key, or `_NO_KEY`."""
    match of:
        case Scalar(name="any" | "str"):
            return text
        case Scalar(name=name) if name in _TEXT_SCALARS:
            return text if _SCALAR_CHECKS[name](text) else _NO_KEY
        case Union(any_of=members):
            return _first_value(keys_by_precision(members), text)
        case Literal() | Enum() if check_value(of, text) is None:
            return text
        case _:
            value = _parsed(text)
            return value if check_value(of, value) is None else _NO_KEY


def _first_value(members: Sequence[Type], text: str) -> object:
    for member in members:
        found = key_value(member, text)
        if found is not _NO_KEY:
            return found
    return _NO_KEY


def _parsed(text: str) -> object:
    if _NUMBER_TEXT.fullmatch(text):  # the usual case, made cheap
        number: int | float = json.loads(text)
        return number
    try:
        return parse_strict(text) if text.strip() == text else _NO_KEY
    except ValueTextError:
        return _NO_KEY


def _check_record(of: Record, value: object, path: str) -> ValueFault | None:
    if not isinstance(value, dict):
        return _wrong(of, value, path)
    for each in of.fields:
        if each.name in value:
            fault = check_value(each.type, value[each.name], child(path, each.name))
            if fault is not None:
                return fault
        elif each.required:
            return ValueFault(path, f"lacks the field {each.name!r} of {of.name}")
    extra = value.keys() - {each.name for each in of.fields}
    if extra:
        return ValueFault(child(path, min(extra)), f"is not a field of {of.name}")
    return None


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_float(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and _is_int(value) and abs(value) <= FLOAT_EXACT_MAX


def _is_bytes(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _is_complex(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_float, value))  # noqa: PLR2004


def _is_decimal(value: object) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= _DECIMAL_CHARS_MAX
        and bool(_DECIMAL_TEXT.fullmatch(value))
        and Decimal(value).is_finite()
    )


def _is_timedelta(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and abs(value) <= TIMEDELTA_SECONDS_MAX


def _is_text_of(
    pattern: re.Pattern[str], read: Callable[[str], object]
) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            return False
        try:
            read(value)
        except ValueError:
            return False
        return True

    return check


_is_uuid: Final = _is_text_of(_UUID_TEXT, UUID)


def _is_file(value: object) -> bool:
    return isinstance(value, dict) and value.keys() == {"$file"} and _is_uuid(value["$file"])


_SCALAR_CHECKS: Final[Mapping[str, Callable[[object], bool]]] = {
    "int": _is_int,
    "float": _is_float,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "bytes": _is_bytes,
    "none": lambda value: value is None,
    "complex": _is_complex,
    "decimal": _is_decimal,
    "datetime": _is_text_of(_DATETIME_TEXT, datetime.fromisoformat),
    "date": _is_text_of(_DATE_TEXT, date.fromisoformat),
    "time": _is_text_of(_TIME_TEXT, time.fromisoformat),
    "timedelta": _is_timedelta,
    "uuid": _is_uuid,
    **dict.fromkeys(CARRIED, _is_file),
}


def _is_constant(value: object, keys: set[tuple[str, Any]]) -> bool:
    return isinstance(value, str | int | float | bool | None) and constant_key(value) in keys


def _wrong(of: Type, value: object, path: str) -> ValueFault:
    return ValueFault(path, f"is {_found(of, value)}; {expression(of)[:200]} was expected")


def _found(of: Type, value: object) -> str:
    """Describe a value; texts are shown if only certain ones are valid."""
    choosy = isinstance(of, Literal | Enum) or (isinstance(of, Scalar) and of.name in _TEXT_SCALARS)
    if choosy and isinstance(value, str):
        shown = value if len(value) <= _SHOWN_CHARS else f"{value[:_SHOWN_CHARS]}…"
        return f"the text {json.dumps(shown, ensure_ascii=False)}"
    return _kind(value)


def _kind(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true" if value else "false"
        case int():
            return "an integer"
        case float():
            return "a number with a fraction or exponent"
        case str():
            return "text"
        case list() | tuple():
            return "an array"
        case _:
            return "an object"
