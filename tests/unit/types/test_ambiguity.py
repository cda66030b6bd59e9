from __future__ import annotations

import pytest
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
    Tuple,
    Type,
    VariadicTuple,
    ambiguous,
    union_of,
)

INT, FLOAT, BOOL, STR, NONE = (SCALARS[name] for name in ("int", "float", "bool", "str", "none"))
BYTES, DATE, DATETIME, DECIMAL, TIMEDELTA, UUID = (
    SCALARS[name] for name in ("bytes", "date", "datetime", "decimal", "timedelta", "uuid")
)
COLOR = Enum("Color", "str", (("RED", "red"), ("BLUE", "blue")))
LEVEL = Enum("Level", "int", (("LOW", 1),))


def _point(name: str, *fields: str) -> Type:
    return Record("dataclass", name, tuple(Field(field, INT) for field in fields))


def _list(item: Type) -> Type:
    return Collection("list", item)


@pytest.mark.parametrize(
    ("members", "written", "read"),
    [
        ((STR, BYTES), BYTES, STR),
        ((DATE, STR), DATE, STR),
        ((DECIMAL, STR, NONE), DECIMAL, STR),
        ((BYTES, DECIMAL), DECIMAL, BYTES),
        ((TIMEDELTA, INT), TIMEDELTA, INT),
        ((FLOAT, TIMEDELTA), TIMEDELTA, FLOAT),
        ((COLOR, STR), COLOR, STR),
        ((FLOAT, LEVEL), LEVEL, FLOAT),
        ((Literal(("AAEC",)), BYTES), BYTES, Literal(("AAEC",))),
        ((VariadicTuple(INT), _list(STR)), VariadicTuple(INT), _list(STR)),
        ((Collection("set", INT), _list(INT)), Collection("set", INT), _list(INT)),
        ((_list(DATE), _list(STR)), _list(STR), _list(DATE)),
        ((SCALARS["complex"], _list(FLOAT)), SCALARS["complex"], _list(FLOAT)),
        ((ANY, DATE), ANY, DATE),
        ((_point("A", "x"), _point("B", "x")), _point("B", "x"), _point("A", "x")),
        ((Dict(STR, INT), _point("A", "x")), Dict(STR, INT), _point("A", "x")),
    ],
)
def test_members_of_one_wire_form_are_ambiguous(
    members: tuple[Type, ...], written: Type, read: Type
) -> None:
    found = ambiguous(_list(union_of(members)))
    assert found is not None
    assert (union_of(members), written, read) == (found.union, found.written, found.read)


@pytest.mark.parametrize(
    "members",
    [
        (INT, FLOAT, BOOL, STR, NONE),
        (ANY, NONE, INT, STR),
        (DATE, DATETIME, UUID, SCALARS["time"], NONE),
        (COLOR, DATE, INT),
        (Literal(("a", 1)), STR, INT),
        (Literal((1,)), FLOAT),
        (DECIMAL, FLOAT),
        (_list(INT), _list(STR), Dict(STR, ANY)),
        (_list(DATE), _list(union_of([DATE, NONE]))),
        (Tuple((INT,)), Tuple((INT, INT)), Tuple((STR,))),
        (_point("A", "x"), _point("B", "x", "y"), NONE),
        (Named("pandas.DataFrame"), ANY),
    ],
)
def test_members_that_the_wire_tells_apart_are_not(members: tuple[Type, ...]) -> None:
    assert ambiguous(_list(union_of(members))) is None


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (union_of([INT, STR]), True),
        (union_of([STR, NONE]), True),
        (union_of([COLOR, STR]), True),
        (union_of([INT, DECIMAL]), True),
        (union_of([BOOL, BYTES]), True),
        (Literal((1, "1")), True),
        (union_of([Literal(("a",)), STR]), False),
        (union_of([INT, FLOAT, BOOL, NONE]), False),
        (union_of([COLOR, INT]), False),
        (union_of([DATE, DATETIME, INT]), False),
        (Literal((1, "a", None)), False),
    ],
)
def test_keys_are_told_apart_by_their_text(key: Type, *, expected: bool) -> None:
    assert expected == (ambiguous(Dict(key, INT)) is not None)


def test_a_type_of_many_parts_is_not_searched() -> None:
    wide = union_of(_list(Literal((number,))) for number in range(900))
    assert ambiguous(union_of([wide, STR, BYTES])) is None
