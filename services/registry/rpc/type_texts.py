"""Types as in responses: the exact JSON form, and the expression for people."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from qflow.types import Type, expression, to_text

from services.registry.domain.type_size import type_size

# Most inputs have one of a few small types, which a page of nodes would encode over and over.
_REMEMBERED_PARTS_MAX: Final = 8
_REMEMBERED_MAX: Final = 1_024


def type_texts(of: Type) -> tuple[str, str]:
    """Return a type as JSON text and as a Python expression."""
    return _small(of) if type_size(of) <= _REMEMBERED_PARTS_MAX else _texts(of)


def _texts(of: Type) -> tuple[str, str]:
    return to_text(of), expression(of)


_small = lru_cache(maxsize=_REMEMBERED_MAX)(_texts)
