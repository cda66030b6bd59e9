"""Evaluate literals in a source, and convert them to JSON."""

from __future__ import annotations

import ast
import base64
import json
import math

from .report import Refused

DEFAULT_CHARS_MAX = 65_536
DEPTH_MAX = 64
INTEGER_MAX = 2**63 - 1
UNKNOWN = object()


def plain(node):
    """Return the value of a literal expression; `UNKNOWN` if it is not one."""
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, OverflowError):
        return UNKNOWN


def storable(value, node):
    """Return the value if JSON can represent it; otherwise raises Refused."""
    if isinstance(value, int) and abs(value) > INTEGER_MAX:
        raise Refused(
            "LITERAL_TOO_LARGE", "the integer has more than 64 bits", "write int instead", node
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise Refused("LITERAL_TOO_LARGE", "the number is not finite", "write float instead", node)
    if isinstance(value, str) and ("\0" in value or _has_surrogate(value)):
        raise Refused(
            "LITERAL_NOT_TEXT",
            "the text cannot be stored as JSON",
            "leave out NUL characters and lone surrogates",
            node,
        )
    return value


def _has_surrogate(text):
    return any(0xD800 <= ord(each) <= 0xDFFF for each in text)


def wire(value):
    """Return a default as JSON text; None if JSON cannot represent it."""
    try:
        text = json.dumps(_to_json(value, 0), ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except (ValueError, TypeError, RecursionError):
        return None
    return text if len(text) <= DEFAULT_CHARS_MAX and "\\u0000" not in text else None


def _to_json(value, depth):
    if depth > DEPTH_MAX:
        raise ValueError(depth)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, complex):
        return [value.real, value.imag]
    if isinstance(value, (list, tuple)):
        return [_to_json(each, depth + 1) for each in value]
    if isinstance(value, (set, frozenset)):
        return sorted((_to_json(each, depth + 1) for each in value), key=json.dumps)
    if isinstance(value, dict):
        keys = [key if isinstance(key, str) else json.dumps(_to_json(key, 0)) for key in value]
        return dict(zip(keys, [_to_json(each, depth + 1) for each in value.values()]))
    raise TypeError(type(value))
