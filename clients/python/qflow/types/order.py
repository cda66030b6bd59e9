"""The order in which the members of a union are tried, as JSON does not say which it was."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from qflow.types.model import (
    SCALARS,
    Collection,
    Enum,
    Literal,
    Record,
    Scalar,
    Tuple,
    Type,
    VariadicTuple,
)

# JSON's own types come before those encoded as them: a text is `str` before it is a date. The
# runner's agent has the same order; `tests/unit/types` compares the two.
_ORDER: Final = (
    ("literal", "none"),
    ("bool",),
    ("int",),
    ("float",),
    ("str",),
    ("enum", "record"),
    ("list",),
    ("tuple",),
    ("set", "frozenset"),
)
_RANK: Final[Mapping[str, int]] = {tag: rank for rank, tags in enumerate(_ORDER) for tag in tags}
_OTHERS: Final = len(_ORDER)


def by_precision(members: Sequence[Type]) -> list[Type]:
    """Return the members of a union in the order in which they are tried; `Any` is last."""
    return sorted(members, key=_rank)


def keys_by_precision(members: Sequence[Type]) -> list[Type]:
    """Return the members of a union of keys in order: `str` first, as each key is a text."""
    return sorted(by_precision(members), key=lambda member: member != SCALARS["str"])


def _rank(of: Type) -> int:
    match of:
        case Scalar(name="any"):
            return _OTHERS + 1
        case Scalar(name=tag) | Collection(kind=tag):
            return _RANK.get(tag, _OTHERS)
        case Literal() | Enum() | Record():
            return _RANK[type(of).__name__.lower()]
        case Tuple() | VariadicTuple():
            return _RANK["tuple"]
        case _:
            return _OTHERS
