"""JSON values in documents that must keep their exact text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from qflow.types import ValueTextError, parse_strict

from services.registry.domain.document import DocumentError, Number, Plain, plain, read_json
from services.registry.domain.document import to_json as json_text
from services.registry.domain.yaml_text import Inline

# A value whose text is not in canonical form is written as that text under this key.
EXACT_KEY: Final = "$json"
_VALUE_DEPTH_MAX: Final = 32


def exact(text: str) -> Plain:
    """Return JSON text as a value if that yields the same text again, else as text under a key."""
    try:
        value = plain(read_json(text))
    except DocumentError:
        return Inline({EXACT_KEY: text})
    # In a document it is nested deeper, and must stay within the depth limit.
    if is_exact(value) or json_text(value) != text or _depth(value) > _VALUE_DEPTH_MAX:
        return Inline({EXACT_KEY: text})
    return value


def _depth(value: Plain) -> int:
    depth = 0
    level: list[Plain] = [value]
    while level := [part for each in level for part in _parts(each)]:
        depth += 1
    return depth


def _parts(value: Plain) -> Iterable[Plain]:
    match value:
        case dict():
            return value.values()
        case list():
            return value
        case _:
            return ()


def is_exact(value: Plain) -> bool:
    """Return whether a value stands for the JSON text that it holds."""
    return isinstance(value, dict) and list(value) == [EXACT_KEY]


def text_of(value: Plain) -> str:
    """Return the JSON text that `exact` converted; raises ValueTextError if it is not valid."""
    text = json_text(value)
    if isinstance(value, dict) and is_exact(value):
        held = value[EXACT_KEY]
        if not isinstance(held, str) or isinstance(held, Number):
            raise ValueTextError(f"{EXACT_KEY} must contain a value's JSON text")
        text = held
    parse_strict(text)
    return text
