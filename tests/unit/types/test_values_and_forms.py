from __future__ import annotations

import json
import math
import tracemalloc

import pytest
from qflow.types import (
    SCALARS,
    Literal,
    Type,
    TypeFormatError,
    ValueTextError,
    check_value,
    dump_exact,
    from_json,
    from_text,
    parse_strict,
)

from tests.support.cost import counted


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('{"a": [1, NaN]}', "a[1]"),
        ('{"a": Infinity}', "a"),
        ('{"a": -1e400}', "a"),
        ('{"a": 1e131072}', "a"),
        ('{"a": ' + "9" * 4301 + "}", "a"),
        ('{"a": {"b": 1, "b": 2}}', "a"),
        ('["\\u0000"]', "[0]"),
        ('["\\ud800"]', "[0]"),
        ('{"\\udfff": 1}', ""),
        ("[" * 65 + "]" * 65, "[0]" * 64),
        ("[" * 100_000 + "]" * 100_000, ""),
        ("[" * 100_000, ""),
        ("", ""),
        ("\ufeff1", ""),
        ("[1,]", ""),
        ("'a'", ""),
        ('"\x00"', ""),
    ],
)
def test_what_some_reader_would_lose_is_refused(text: str, path: str) -> None:
    """B57, B58, B59."""
    with pytest.raises(ValueTextError) as caught:
        parse_strict(text)
    assert path == caught.value.path


def test_the_search_for_a_fault_holds_one_step_per_level() -> None:
    """A wide value with a fault at its end is walked, not copied."""
    wide = "[" + ",".join(["[]"] * 100_000) + "]"
    value = json.loads(wide)
    value.append(math.nan)
    tracemalloc.start()
    try:
        with pytest.raises(ValueTextError) as caught:
            dump_exact(value)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert "[100000]" == caught.value.path
    assert peak < 100_000


def test_bytes_that_are_no_utf8_are_refused() -> None:
    with pytest.raises(ValueTextError):
        parse_strict(b'"\xff"')


@pytest.mark.parametrize(
    "text",
    [
        "9007199254740993",
        "9" * 4300,
        "-0.0",
        "1e+16",
        '"\\ud83d\\ude00"',
        "[" * 64 + "]" * 64,
        '{"zz":1,"b":[true,null]}',
    ],
)
def test_what_is_kept_comes_back(text: str) -> None:
    """B61."""
    value = parse_strict(text)
    assert json.loads(text) == value
    assert value == parse_strict(dump_exact(value))


@pytest.mark.parametrize(
    "value",
    [float("nan"), {"a": float("inf")}, {1: 2}, b"x", {"a": {1}}, "\0", "\ud800", [10**4300]],
)
def test_what_json_does_not_have_is_not_written(value: object) -> None:
    with pytest.raises(ValueTextError):
        dump_exact(value)


def test_a_large_value_is_parsed_in_little_time() -> None:
    text = dump_exact(
        [{"name": "row", "value": number, "tags": ["a", "b"]} for number in range(15_000)]
    )
    with counted() as cost:
        parse_strict(text)
    assert cost.ms < 2000


@pytest.mark.parametrize(
    ("form", "path"),
    [
        ("int", ""),
        ({"t": "integer"}, "t"),
        ({"t": ["int"]}, "t"),
        ({"t": "int", "x": 1}, ""),
        ({"t": "list"}, ""),
        ({"t": "list", "item": {"t": "what"}}, "item.t"),
        ({"t": "union", "any_of": []}, ""),
        ({"t": "literal", "values": [1.5]}, "values[0]"),
        ({"t": "literal", "values": [2**63]}, "values[0]"),
        ({"t": "record", "kind": "struct", "name": "A", "fields": []}, "kind"),
        (
            {
                "t": "record",
                "kind": "dataclass",
                "name": "A",
                "fields": [{"name": "a", "type": {"t": "int"}}] * 2,
            },
            "",
        ),
        ({"t": "enum", "name": "E", "base": "str", "members": {}}, ""),
        ({"t": "named", "name": "os; rm"}, "name"),
        ({"t": "tuple", "items": [{"t": "int"}] * 1001}, "items"),
    ],
)
def test_a_form_that_is_no_type_is_refused_with_its_place(form: object, path: str) -> None:
    """B38."""
    with pytest.raises(TypeFormatError) as caught:
        from_json(form)
    assert path == caught.value.path


def test_a_form_nested_deeper_than_64_is_refused() -> None:
    """B38."""
    form: dict[str, object] = {"t": "int"}
    for _ in range(63):
        form = {"t": "list", "item": form}
    assert from_json(form)
    with pytest.raises(TypeFormatError):
        from_json({"t": "list", "item": form})
    with pytest.raises(TypeFormatError):
        from_text('{"t":"list","item":' * 100_000)


def test_a_fault_in_one_text_leaves_nothing_for_the_next() -> None:
    for _ in range(2):
        with pytest.raises(ValueTextError, match=r"^b: has the key \"a\" twice"):
            parse_strict('{"b": {"a": 1, "a": 2}}')
        with pytest.raises(ValueTextError, match="is not JSON"):
            parse_strict('[NaN, {"a": 1, "a": 2}')  # both: what cannot be read at all comes first
        assert {"a": 1} == parse_strict('{"a": 1}')


@pytest.mark.parametrize(
    ("of", "value", "told"),
    [
        (SCALARS["datetime"], "2027-02-30T00:00:00Z", 'is the text "2027-02-30T00:00:00Z"; '),
        (Literal(("big", "small")), "nope", 'is the text "nope"; '),
        (SCALARS["uuid"], "x" * 50, f'is the text "{"x" * 40}…"; '),
        (SCALARS["int"], "5", "is text; int was expected"),
        (SCALARS["datetime"], 5, "is an integer; "),
    ],
)
def test_a_text_among_texts_is_told_by_what_it_says(of: Type, value: object, told: str) -> None:
    fault = check_value(of, value)
    assert fault is not None
    assert fault.message.startswith(told)
