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
    VerdictKind,
    check_value,
    expression,
    union_of,
    verdict,
)

INT, FLOAT, BOOL, STR, NONE = (SCALARS[name] for name in ("int", "float", "bool", "str", "none"))
COLOR = Enum("Color", "str", (("RED", "red"), ("BLUE", "blue")))
ROW = Record("typeddict", "Row", (Field("a", INT), Field("b", STR, required=False)))


def _list(item: Type) -> Type:
    return Collection("list", item)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (INT, union_of([INT, NONE])),
        (Literal((1, 2)), INT),
        (Literal(("a",)), Literal(("a", "b"))),
        (Literal(("a", 1)), union_of([INT, STR])),
        (BOOL, union_of([Literal((True,)), Literal((False,))])),
        (_list(INT), _list(union_of([INT, STR]))),
        (Tuple((INT, INT)), VariadicTuple(INT)),
        (Collection("set", INT), Collection("frozenset", INT)),
        (ROW, ANY),
        (
            Record("dataclass", "Other", (Field("a", INT),)),
            ROW,
        ),
        (Dict(STR, INT), Dict(ANY, ANY)),
        (Collection("set", Tuple((INT, INT))), Collection("set", ANY)),
    ],
)
def test_what_needs_no_change_is_widening(source: Type, target: Type) -> None:
    assert verdict(source, target).kind == VerdictKind.WIDENING


@pytest.mark.parametrize(
    ("source", "target", "method"),
    [
        (INT, FLOAT, "int_to_float"),
        (INT, union_of([FLOAT, NONE]), "int_to_float"),
        (Literal((1, 2)), FLOAT, "int_to_float"),
        (BOOL, INT, "bool_to_int"),
        (INT, STR, "int_to_str"),
        (SCALARS["date"], SCALARS["datetime"], "date_to_datetime"),
        (SCALARS["bytes"], STR, "bytes_to_base64"),
        (Tuple((INT, STR)), _list(union_of([INT, STR])), "tuple_to_list"),
        (Collection("set", INT), _list(INT), "set_to_list"),
        (_list(INT), VariadicTuple(INT), "list_to_tuple"),
        (COLOR, STR, "enum_to_value"),
        (ROW, Dict(STR, union_of([INT, STR])), "record_to_dict"),
    ],
)
def test_a_lossless_conversion_is_inserted(source: Type, target: Type, method: str) -> None:
    """B40: what is not the same is converted by name, or refused."""
    said = verdict(source, target)
    assert (VerdictKind.CONVERSION, method, True) == (said.kind, said.method, said.lossless)


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (STR, INT),
        (FLOAT, INT),
        (union_of([INT, NONE]), INT),
        (_list(STR), _list(INT)),
        (_list(INT), _list(FLOAT)),
        (_list(INT), Collection("set", INT)),
        (ANY, INT),
        (Dict(ANY, ANY), Dict(STR, INT)),
        (ROW, Record("typeddict", "Row", (Field("a", INT),))),
        (Record("typeddict", "Row", (Field("a", INT, required=False),)), ROW),
        (VariadicTuple(INT), Tuple((INT, INT))),
        (_list(INT), STR),
    ],
)
def test_what_may_not_fit_is_refuted_by_a_value(source: Type, target: Type) -> None:
    said = verdict(source, target)
    assert said.kind == VerdictKind.REFUTED
    assert said.counter_example is not None
    assert said.reason


def test_a_lossy_conversion_stands_only_where_the_edge_names_it() -> None:
    assert "str_to_int" in verdict(STR, INT).reason
    said = verdict(STR, INT, "str_to_int")
    assert (said.kind, said.lossless) == (VerdictKind.CONVERSION, False)
    assert verdict(STR, FLOAT, "str_to_int").kind == VerdictKind.REFUTED
    assert verdict(INT, FLOAT, "str_to_int").kind == VerdictKind.REFUTED
    assert verdict(INT, FLOAT, "__import__('os')").kind == VerdictKind.REFUTED


def test_json_text_is_read_by_the_target_only_where_the_edge_says_so() -> None:
    assert verdict(STR, _list(INT), "json_to_value").kind == VerdictKind.CONVERSION
    assert verdict(_list(INT), STR, "value_to_json").kind == VerdictKind.CONVERSION
    assert verdict(_list(INT), STR).kind == VerdictKind.REFUTED


def test_opaque_values_stay_within_a_node() -> None:
    frame = Named("pandas.DataFrame")
    assert verdict(frame, frame).kind == VerdictKind.EXACT
    assert "not carried" in verdict(frame, ANY).reason
    assert check_value(frame, {}) is not None


def test_a_set_of_records_is_no_set_of_anything() -> None:
    """Read as `Any` a record is a `dict`, which no set can hold."""
    rows = Collection("frozenset", Record("dataclass", "Point", (Field("x", INT),)))
    assert verdict(rows, rows).kind == VerdictKind.EXACT
    assert verdict(rows, Collection("set", ANY)).kind == VerdictKind.REFUTED
    assert verdict(_list(ROW), _list(ANY)).kind == VerdictKind.WIDENING


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        (INT, ("0", "-7", "9" * 4300), ("1.0", "+1", " 1", "01", "x", "9" * 4301)),
        (FLOAT, ("1", "0.5", "-1e-7"), (".5", "+1", "1.", "nan", "1e400", str(2**53 + 1))),
        (NONE, ("null",), ("None", "")),
        (COLOR, ("red",), ("RED",)),
        (Literal(("a", 1, None)), ("a", "1", "null"), ("1.0", "b")),
        (Tuple((INT, STR)), ('[1,"a"]',), ("[1]", "1")),
        (union_of([INT, SCALARS["date"]]), ("1", "2024-02-29"), ("2024-02-30",)),
    ],
)
def test_a_key_is_its_text_or_its_json_text(
    key: Type, good: tuple[str, ...], bad: tuple[str, ...]
) -> None:
    for text in good:
        assert check_value(Dict(key, INT), {text: 1}) is None
    for text in bad:
        assert check_value(Dict(key, INT), {text: 1}) is not None


def test_equal_keys_and_elements_are_faults() -> None:
    """To Python 1, 1.0 and True are one key."""
    for of, value in (
        (Dict(FLOAT, INT), {"1": 1, "1.0": 2}),
        (Dict(INT, INT), {"0": 1, "-0": 2}),
        (Collection("set", FLOAT), [1, 1.0]),
        (Collection("frozenset", Tuple((ANY,))), [[1], [True]]),
    ):
        fault = check_value(of, value)
        assert fault is not None
        assert fault.path


def test_the_offset_of_an_old_local_time_may_have_seconds() -> None:
    assert check_value(SCALARS["datetime"], "1880-01-01T00:00:00+00:19:32") is None
    assert check_value(SCALARS["datetime"], "1880-01-01T00:00:00+00:19:3") is not None


def test_one_is_not_true() -> None:
    """B40."""
    assert Literal((1,)) != Literal((True,))
    assert verdict(Literal((True,)), Literal((1,))).kind == VerdictKind.REFUTED
    assert check_value(INT, True) is not None
    assert check_value(BOOL, 1) is not None
    assert check_value(INT, "1") is not None
    assert check_value(INT, 1.0) is not None
    assert check_value(FLOAT, 1) is None
    assert check_value(FLOAT, 2**53 + 1) is not None


def test_a_fault_says_where() -> None:
    fault = check_value(Dict(STR, _list(ROW)), {"x y": [{"a": 1}, {"a": "1"}]})
    assert fault is not None
    assert fault.path == '["x y"][1].a'
    assert "text" in fault.message


@pytest.mark.parametrize(
    ("of", "text"),
    [
        (union_of([Dict(STR, _list(INT)), NONE]), "dict[str, list[int]] | None"),
        (Tuple(()), "tuple[()]"),
        (VariadicTuple(SCALARS["decimal"]), "tuple[Decimal, ...]"),
        (Literal(("a", 1, None)), "Literal['a', 1, None]"),
        (ROW, "Row"),
    ],
)
def test_a_type_reads_as_python_writes_it(of: Type, text: str) -> None:
    assert text == expression(of)
