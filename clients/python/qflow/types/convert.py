"""Conversions of values for the engine itself, where no runner applies them.

They do the same as those of the runner's agent, which a test verifies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from qflow.types.values import ValueTextError, dump_exact, parse_strict

_EXACT_FLOAT_INT_MAX: Final = 2**53
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}


class ConversionError(ValueError):
    """A conversion refused a value; the message has its shape, never its content."""


def convert(text: bytes, method: str, *, depth: int = 0) -> bytes:
    """Apply a conversion to the JSON text of a value; returns JSON text.

    With a depth, to each element so many levels of lists down.
    """
    rule = _RULES[method]
    if rule is None:
        return text
    try:
        return dump_exact(_each(parse_strict(text), method, rule, depth)).encode()
    except ValueTextError as error:
        raise ConversionError(f"{method}: {error}") from None


def _each(plain: object, method: str, rule: Callable[[Any], object], depth: int) -> object:
    if depth and isinstance(plain, list):
        return [_each(each, method, rule, depth - 1) for each in plain]
    if depth and plain is None:
        return None  # an absent list has no elements
    try:
        return rule(plain)
    except (ValueError, ArithmeticError, RecursionError) as error:
        told = str(error) if isinstance(error, _RefusedError) else "the value cannot be converted"
        raise ConversionError(f"{method} {_shape(plain)}: {told}") from None


class _RefusedError(ValueError):
    pass


def _shape(plain: object) -> str:
    if isinstance(plain, str):
        return f"of a text of {len(plain)} characters"
    if isinstance(plain, list | dict):
        return f"of a {type(plain).__name__} of {len(plain)}"
    return f"of a value of {type(plain).__name__}"


def _want(plain: Any, kinds: tuple[type, ...], name: str) -> Any:
    if type(plain) not in kinds:
        raise _RefusedError(f"expected {name}, got {type(plain).__name__}")
    return plain


def _float(plain: Any) -> float:
    number = _want(plain, (int, float), "float")
    if type(number) is int and not -_EXACT_FLOAT_INT_MAX <= number <= _EXACT_FLOAT_INT_MAX:
        raise _RefusedError("the integer is beyond 2**53 and would lose digits as a float")
    return float(number)


def _int_of_float(plain: Any) -> int:
    number = _want(plain, (int, float), "float")
    if type(number) is float and not number.is_integer():
        raise _RefusedError("the number has a fraction and cannot be an int")
    return int(number)


def _parsed(make: Callable[[str], object], name: str) -> Callable[[Any], object]:
    def apply(plain: Any) -> object:
        text = _want(plain, (str,), "str")
        try:
            return make(text)
        except (ValueError, ArithmeticError):
            raise _RefusedError(f"the text is not {name}") from None

    return apply


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise _RefusedError("NaN and Infinity are not JSON")
    return number


def _flag(plain: Any) -> bool:
    found = _FLAGS.get(_want(plain, (str,), "str").strip().lower())
    if found is None:
        raise _RefusedError("the text is neither true nor false")
    return found


def _unique(plain: Any) -> list[object]:
    """Remove duplicates as a set does, to which 1, 1.0 and True are equal."""
    seen: dict[object, object] = {}
    for item in _want(plain, (list,), "list"):
        try:
            seen.setdefault(_hashable(item), item)
        except TypeError:  # it contains an object
            seen.setdefault(dump_exact(item), item)
    return list(seen.values())


def _hashable(plain: object) -> object:
    return tuple(map(_hashable, plain)) if isinstance(plain, list) else plain


# None: the text stays the same, only the type changes.
_RULES: Final[Mapping[str, Callable[[Any], object] | None]] = {
    "int_to_float": _float,
    "bool_to_int": lambda plain: int(_want(plain, (bool,), "bool")),
    "int_to_str": lambda plain: str(_want(plain, (int,), "int")),
    "float_to_str": lambda plain: repr(_float(plain)),
    "bool_to_str": lambda plain: "true" if _want(plain, (bool,), "bool") else "false",
    "int_to_decimal": lambda plain: str(_want(plain, (int,), "int")),
    "float_to_decimal": lambda plain: repr(_float(plain)),
    "decimal_to_str": None,
    "uuid_to_str": None,
    "datetime_to_str": None,
    "date_to_str": None,
    "date_to_datetime": lambda plain: _want(plain, (str,), "date") + "T00:00:00",
    "bytes_to_base64": None,
    "tuple_to_list": None,
    "set_to_list": None,
    "frozenset_to_list": None,
    "list_to_tuple": None,
    "enum_to_value": None,
    "record_to_dict": None,
    "value_to_json": dump_exact,
    "str_to_int": _parsed(int, "an integer"),
    "str_to_float": _parsed(_finite, "a number"),
    "str_to_bool": _flag,
    "str_to_decimal": _parsed(lambda text: str(Decimal(text.strip())), "a decimal"),
    "str_to_datetime": _parsed(
        lambda text: datetime.fromisoformat(text.strip()).isoformat(), "a datetime"
    ),
    "str_to_date": _parsed(lambda text: date.fromisoformat(text.strip()).isoformat(), "a date"),
    "str_to_uuid": _parsed(lambda text: str(UUID(text.strip())), "a UUID"),
    "float_to_int": _int_of_float,
    "list_to_set": _unique,
    "json_to_value": _parsed(parse_strict, "JSON"),
}
