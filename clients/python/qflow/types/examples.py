"""Example values of types, chosen at their limits, to refute edges."""

# Each function here is one table over the closed set of types.
# ruff: noqa: C901

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

from qflow.types.check import comparable
from qflow.types.model import (
    ANY,
    CARRIED,
    FLAG,
    SCALARS,
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
    combinations,
)
from qflow.types.values import dump_exact

_PER_PART: Final = 4
_PER_KEY: Final = 12
_UUID: Final = "00000000-0000-4000-8000-000000000001"
_SCALARS: Final[Mapping[str, tuple[Any, ...]]] = {
    "int": (0, -1, 2**53 + 1),
    "float": (0.5, 0.0, -1e300),
    "bool": (True, False),
    "str": ("text", "", "1"),
    "bytes": ("AAE=", ""),
    "none": (None,),
    "any": ({"any": [None]}, "text", 1, None),
    "complex": ([0.5, -1.0],),
    "decimal": ("0.1", "1e30"),
    "datetime": ("2024-02-29T12:00:00+00:00", "2024-02-29T12:00:00"),
    "date": ("2024-02-29",),
    "time": ("12:00:00",),
    "timedelta": (0.5, -1),
    "uuid": (_UUID,),
    **dict.fromkeys(CARRIED, ({"$file": _UUID},)),
}


def examples(of: Type) -> Iterator[Any]:
    """Yield some values of a type in their wire form; none if there is no value."""
    match of:
        case Scalar(name=name):
            yield from _SCALARS[name]
        case Literal(values=values):
            yield from values
        case Enum(base=base) if base == FLAG:
            yield from islice(combinations(of), _PER_KEY)
        case Enum(members=pairs):
            yield from (value for _, value in pairs)
        case Union(any_of=members):
            for member in members:
                yield from islice(examples(member), _PER_PART)
        case Collection(item=item) | VariadicTuple(item=item):
            yield from _arrays(of, item)
        case Tuple(items=items):
            yield from _products([list(islice(examples(item), _PER_PART)) for item in items])
        case Dict(key=key, value=value):
            yield from _dicts(key, value)
            yield {}
        case Record():
            yield from _records(of)
        case Named():
            return


def _arrays(of: Collection | VariadicTuple, item: Type) -> Iterator[Any]:
    items = list(islice(examples(item), _PER_PART))
    yield from ([each] for each in items)
    if isinstance(of, Collection) and of.kind != "list":
        unique = {comparable(each): each for each in items}
        yield list(unique.values())
    else:
        yield from ([each, each] for each in items[:1])
    yield []


def _products(columns: list[list[Any]]) -> Iterator[Any]:
    """Vary one column at a time."""
    if not all(columns):
        return
    first = [column[0] for column in columns]
    yield first
    for place, column in enumerate(columns):
        for other in column[1:]:
            yield [*first[:place], other, *first[place + 1 :]]


def _records(of: Record) -> Iterator[Any]:
    columns = [list(islice(examples(each.type), _PER_PART)) for each in of.fields]
    names = [each.name for each in of.fields]
    for values in _products(columns):
        yield dict(zip(names, values, strict=True))
    if all(column for column, each in zip(columns, of.fields, strict=True) if each.required):
        yield {
            each.name: column[0]
            for column, each in zip(columns, of.fields, strict=True)
            if each.required
        }


def _dicts(key: Type, value: Type) -> Iterator[Any]:
    if key in (SCALARS["str"], ANY):
        texts = ["key"]
    else:
        found = islice(examples(key), _PER_KEY)
        texts = [each if isinstance(each, str) else dump_exact(each) for each in found]
    for text, each in _products([texts, list(islice(examples(value), _PER_PART))]):
        yield {text: each}
