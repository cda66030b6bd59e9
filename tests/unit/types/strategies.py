"""Types, and values of them, as hypothesis draws them."""

from __future__ import annotations

import base64
import zlib
from typing import Any

from hypothesis import strategies as st
from qflow.types import (
    ANY,
    SCALARS,
    Collection,
    Dict,
    Enum,
    Field,
    Literal,
    Named,
    Record,
    Scalar,
    Tuple,
    Type,
    Union,
    VariadicTuple,
    dump_exact,
    union_of,
)
from qflow.types.check import comparable, key_value
from qflow.types.model import CARRIED, FLAG, combinations

TEXT = st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), max_size=8)
INT64 = st.integers(-(2**63) + 1, 2**63 - 1)
NAMES = st.sampled_from(["a", "b", "c", "d"])

constants = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 2), st.sampled_from(["a", "b", "1"])
)
literals = st.lists(
    constants, min_size=1, max_size=3, unique_by=lambda value: (type(value), value)
).map(lambda values: Literal(tuple(values)))
enums = st.builds(
    lambda base, pairs: Enum(_named("Color", pairs), base, tuple(pairs.items())),
    st.sampled_from(["str", "int"]),
    st.dictionaries(NAMES, st.sampled_from(["x", "y", 1, 2]), min_size=1, max_size=3),
)
flags = st.dictionaries(NAMES, st.sampled_from([1, 2, 3, 4, 8]), min_size=1, max_size=3).map(
    lambda pairs: Enum(_named("Mode", pairs), FLAG, tuple(pairs.items()))
)
scalars = st.sampled_from(list(SCALARS.values()))
_single_keys = st.one_of(
    st.sampled_from([of for name, of in SCALARS.items() if name not in CARRIED]),
    literals,
    enums,
    flags,
    st.just(Tuple((SCALARS["int"], SCALARS["str"]))),
)
key_types = st.one_of(_single_keys, st.lists(_single_keys, min_size=2, max_size=3).map(union_of))


def _named(name: str, content: object) -> str:
    """Give different classes different names: the runner's agent finds them by name."""
    return f"{name}{zlib.crc32(repr(content).encode())}"


def _records(children: st.SearchStrategy[Type]) -> st.SearchStrategy[Type]:
    field = st.tuples(children, st.booleans())
    return st.builds(
        _record,
        st.sampled_from(["typeddict", "dataclass"]),
        st.dictionaries(NAMES, field, max_size=3),
    )


def _record(kind: str, fields: dict[str, tuple[Type, bool]]) -> Type:
    shape = tuple(
        Field(name, of, required or kind == "dataclass") for name, (of, required) in fields.items()
    )
    return Record(kind, _named("Row", shape), shape)


def _extend(children: st.SearchStrategy[Type]) -> st.SearchStrategy[Type]:
    return st.one_of(
        st.builds(Collection, st.sampled_from(["list", "set", "frozenset"]), children),
        st.lists(children, max_size=3).map(lambda items: Tuple(tuple(items))),
        children.map(VariadicTuple),
        st.builds(Dict, key_types, children),
        st.lists(children, min_size=1, max_size=3).map(union_of),
        _records(children),
    )


def types(*, opaque: bool = False) -> st.SearchStrategy[Type]:
    """Draw types; with `opaque` also such as have no values."""
    leaves: list[st.SearchStrategy[Any]] = [scalars, literals, enums, flags]
    if opaque:
        leaves.append(st.just(Named("pandas.DataFrame")))
    return st.recursive(st.one_of(leaves), _extend, max_leaves=6)


TYPES = types()
_ALIKE = [
    st.sampled_from([SCALARS[name] for name in names]) | literals | enums | flags
    for names in (
        ("str", "bytes", "decimal", "date", "datetime", "none"),
        ("int", "float", "timedelta", "any"),
    )
]
_ARRAYS = st.one_of(
    st.builds(Collection, st.sampled_from(["list", "set"]), scalars),
    scalars.map(VariadicTuple),
    st.lists(scalars, max_size=2).map(lambda items: Tuple(tuple(items))),
)
_DICTS = st.builds(Dict, key_types, scalars)
# Unions of members that look alike on the wire, which any types hardly ever make.
UNIONS: st.SearchStrategy[Type] = st.one_of(
    [st.lists(alike, min_size=2, max_size=3).map(union_of) for alike in (*_ALIKE, _ARRAYS, _DICTS)]
)
_CHOICES = st.integers(0, 5)


def _wider(draw: st.DrawFn, of: Type) -> Type:
    """Draw a type that mostly holds all values of another: random pairs hardly ever do."""
    match draw(_CHOICES):
        case 0:
            return of
        case 1:
            return ANY
        case 2:
            return union_of([of, draw(TYPES)])
        case _:
            return _wider_parts(draw, of)


def _wider_parts(draw: st.DrawFn, of: Type) -> Type:  # noqa: PLR0911  # one table
    match of:
        case Literal(values=values):
            named = {"NoneType": "none"}
            names = [type(each).__name__ for each in values]
            return union_of([SCALARS[named.get(name, name)] for name in names])
        case Scalar(name="bool"):
            return union_of([Literal((True,)), Literal((False,))])
        case Collection(kind=kind, item=item):
            return Collection(kind, _wider(draw, item))
        case VariadicTuple(item=item):
            return VariadicTuple(_wider(draw, item))
        case Tuple(items=items) if items and draw(_CHOICES) % 2:
            return VariadicTuple(_wider(draw, union_of(items)))
        case Tuple(items=items):
            return Tuple(tuple(_wider(draw, item) for item in items))
        case Dict(key=key, value=value):
            return Dict(key, _wider(draw, value))
        case Union(any_of=members):
            return union_of([_wider(draw, member) for member in members])
        case Record(fields=fields):
            wide = [Field(each.name, _wider(draw, each.type), required=False) for each in fields]
            return Record("dataclass", "Wide", (*wide, Field("e", ANY, required=False)))
        case _:
            return draw(TYPES)


@st.composite
def chains(draw: st.DrawFn) -> tuple[Type, Type, Type]:
    """Draw three types, each mostly wider than the one before."""
    first = draw(TYPES)
    second = _wider(draw, first)
    return first, second, _wider(draw, second)


def _narrowed(draw: st.DrawFn, of: Type) -> Type:  # noqa: PLR0911  # one table
    match of:
        case Union(any_of=members):
            return _narrowed(draw, draw(st.sampled_from(members)))
        case Collection(kind=kind, item=item):
            return Collection(kind, _narrowed(draw, item))
        case VariadicTuple(item=item):
            return VariadicTuple(_narrowed(draw, item))
        case Tuple(items=items):
            return Tuple(tuple(_narrowed(draw, item) for item in items))
        case Dict(key=key, value=value):
            return Dict(_narrowed(draw, key), _narrowed(draw, value))
        case Record(kind=kind, name=name, fields=fields):
            shape = [Field(each.name, _narrowed(draw, each.type), each.required) for each in fields]
            return Record(kind, name, tuple(shape))
        case _:
            return of


@st.composite
def narrowed(draw: st.DrawFn, of: Type) -> Type:
    """Draw what a function may return that declares this: one member of each union."""
    return _narrowed(draw, of)


_JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), INT64, st.floats(allow_nan=False, allow_infinity=False), TEXT
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXT, inner, max_size=3)),
    max_leaves=5,
)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_SCALAR_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(),
    "float": _FLOATS | st.integers(-(2**53), 2**53),
    "bool": st.booleans(),
    "str": TEXT,
    "bytes": st.binary(max_size=8).map(lambda raw: base64.b64encode(raw).decode()),
    "none": st.none(),
    "any": _JSON,
    "complex": st.tuples(_FLOATS, _FLOATS).map(list),
    "decimal": st.decimals(allow_nan=False, allow_infinity=False).map(str),
    "datetime": st.datetimes().map(lambda value: value.isoformat()),
    "date": st.dates().map(lambda value: value.isoformat()),
    "time": st.times().map(lambda value: value.isoformat()),
    "timedelta": st.floats(-1e9, 1e9),
    "uuid": st.uuids().map(str),
    **dict.fromkeys(CARRIED, st.uuids().map(lambda value: {"$file": str(value)})),
}


def _key_texts(of: Type) -> st.SearchStrategy[str]:
    if ANY in (of, *(of.any_of if isinstance(of, Union) else ())):
        return TEXT
    return values_of(of).map(lambda value: value if isinstance(value, str) else dump_exact(value))


def _without_equal_keys(of: Type, drawn: dict[str, Any]) -> dict[str, Any]:
    kept = {comparable(key_value(of, text)): text for text in drawn}
    return {text: drawn[text] for text in kept.values()}


def values_of(of: Type) -> st.SearchStrategy[Any]:  # noqa: C901, PLR0911  # one table
    """Draw values of a type in their wire form."""
    match of:
        case Scalar(name=name):
            return _SCALAR_VALUES[name]
        case Literal(values=values):
            return st.sampled_from(values)
        case Enum(base=base) if base == FLAG:
            return st.sampled_from(list(combinations(of)))
        case Enum(members=pairs):
            return st.sampled_from([value for _, value in pairs])
        case Union(any_of=members):
            return st.one_of([values_of(member) for member in members])
        case Collection(kind=kind, item=item):
            unique = {} if kind == "list" else {"unique_by": comparable}
            return st.lists(values_of(item), max_size=3, **unique)  # type: ignore[arg-type]
        case VariadicTuple(item=item):
            return st.lists(values_of(item), max_size=3)
        case Tuple(items=items):
            return st.tuples(*map(values_of, items)).map(list)
        case Dict(key=key, value=value):
            return st.dictionaries(_key_texts(key), values_of(value), max_size=3).map(
                lambda drawn: _without_equal_keys(key, drawn)
            )
        case Record(fields=fields):
            return st.fixed_dictionaries(
                {each.name: values_of(each.type) for each in fields if each.required},
                optional={each.name: values_of(each.type) for each in fields if not each.required},
            )
        case _:
            raise AssertionError(of)
