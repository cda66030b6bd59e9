"""A few values of a type, chosen at its borders: the witnesses that refute an edge."""

# Each function here is one table over the closed set of types.
# ruff: noqa: C901

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Final

from qflow.types.model import (
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
)
from qflow.types.values import dump_exact

_PER_PART: Final = 4
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
    "file": ({"$file": _UUID},),
}
_KEYS: Final[Mapping[str, str]] = {
    "int": "-7",
    "float": "0.5",
    "bool": "true",
    "none": "null",
    "bytes": "AAE=",
    "decimal": "0.1",
    "datetime": "2024-02-29T12:00:00",
    "date": "2024-02-29",
    "time": "12:00:00",
    "uuid": _UUID,
}


def examples(of: Type) -> Iterator[Any]:
    """Give a few values of a type in their wire form; none where no value can be written."""
    match of:
        case Scalar(name=name):
            yield from _SCALARS[name]
        case Literal(values=values):
            yield from values
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
            text = _key(key)
            if text is not None:
                yield from ({text: each} for each in islice(examples(value), _PER_PART))
            yield {}
        case Record():
            yield from _records(of)
        case Named():
            return


def _arrays(of: Collection | VariadicTuple, item: Type) -> Iterator[Any]:
    items = list(islice(examples(item), _PER_PART))
    yield from ([each] for each in items)
    if isinstance(of, Collection) and of.kind != "list":
        unique = {dump_exact(each): each for each in items}
        yield list(unique.values())
    else:
        yield from ([each, each] for each in items[:1])
    yield []


def _products(columns: list[list[Any]]) -> Iterator[Any]:
    """Vary one place at a time."""
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


def _key(of: Type) -> str | None:
    match of:
        case Scalar(name="str" | "any"):
            return "key"
        case Scalar(name=name):
            return _KEYS.get(name)
        case Literal(values=values) if values:
            return values[0] if isinstance(values[0], str) else dump_exact(values[0])
        case Enum(members=pairs):
            value = pairs[0][1]
            return value if isinstance(value, str) else dump_exact(value)
        case Union(any_of=members):
            return next(filter(None, map(_key, members)), None)
        case _:
            return None
