"""The order in which the members of a union are tried: nothing on the wire says which was meant."""

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

# What JSON itself has comes before what is written as it: text is `str` before it is a date.
# The runner's agent reads in this order; `tests/unit/types` compares the two.
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
    """Order the members of a union as a value is tried against them; `Any` is last."""
    return sorted(members, key=_rank)


def keys_by_precision(members: Sequence[Type]) -> list[Type]:
    """Order the members of a union of keys: each key is a text, so `str` is the first."""
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
