"""Conditions are compiled within bounds, and give an answer or one kind of error in little time."""

from __future__ import annotations

import json
import threading
import time

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.kit.cel import (
    EXPRESSION_BYTES_MAX,
    VALUES_BYTES_MAX,
    ExpressionError,
    compile_expression,
    compile_new,
)

NAMES = ("x", "y", "rows", "status")
ROWS = b'[{"state": "ok", "size": 3}, {"state": "bad", "size": 5}]'
# Of work, whatever else the machine does: far below what the bounds prevent.
SECONDS_MAX = 2.0


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("x > 3", {"x": b"4"}, True),
        ("x > 3", {"x": b"2.5"}, False),
        ('status == "ok" && x >= 1', {"status": b'"ok"', "x": b"1"}, True),
        ('rows.exists(row, row.state == "bad")', {"rows": ROWS}, True),
        ("rows.all(row, row.size > y)", {"rows": ROWS, "y": b"4"}, False),
        ("size(rows.filter(row, row.size > 4)) == 1", {"rows": ROWS}, True),
        ("rows.map(row, row.size) == [3, 5]", {"rows": ROWS}, True),
        ("x in [1, 2, 3]", {"x": b"2"}, True),
        ("has(x.name)", {"x": b"{}"}, False),
        ("x == null", {"x": b"null"}, True),
        ("status.matches('^o.$')", {"status": b'"ok"'}, True),
        (
            "timestamp(x) > timestamp('2026-01-01T00:00:00Z')",
            {"x": b'"2026-05-01T00:00:00Z"'},
            True,
        ),
        ("x == 9223372036854775807", {"x": b"9223372036854775807"}, True),
        ("// why\n x ? true : false", {"x": b"true"}, True),
        ("-x == 1", {"x": b"-1"}, True),
        ("[1, 2][x] == 2", {"x": b"1"}, True),
        ("{'a': 1}[x] == 1", {"x": b'"a"'}, True),
    ],
)
def test_a_condition_holds_or_does_not(
    text: str, values: dict[str, bytes], *, expected: bool
) -> None:
    assert compile_expression(text, NAMES).holds(values) is expected


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("", 1, "needed"),
        ("  // nothing", 1, "needed"),
        ("x ==", 5, "mismatched"),
        ("x > 1 && zebra", 10, "'zebra' is not known here; known: rows, status, x, y"),
        ("x > now()", 5, "there is no function 'now'"),
        ("x.lower() == 'a'", 3, "there is no method 'lower'"),
        ("x.all(i, y.all(j, i == j))", 12, "one level"),
        ("x.map(i, y.filter(j, true))", 12, "one level"),
        ("x.all(i, (y.exists(j, true)))", 13, "one level"),
        ("x" * (EXPRESSION_BYTES_MAX + 1), 0, "at most 4096 bytes"),
        ("(" * 25 + "x" + ")" * 25, 25, "24 deep"),
        ("!" * 201 + "true", 201, "at most 200"),
        ("+".join("x" * 40), 66, "adds at most 32 times"),
        ("x in [" + ",".join("1" * 300) + "]", 606, "at most 256 elements"),
        ("x.matches(y)", 3, "in quotes"),
        ("x.matches('a{1000}')", 11, "no counted repetition"),
        ("x.matches('a\\x7b1000}')", 11, "no counted repetition"),
        ("x.matches('" + "a" * 200 + "')", 11, "at most 200 characters"),
        ("x.all(i, i.matches('a'))", 12, "each turn"),
        ("loop == 1", 1, "reserved word"),
        (".x == 1", 1, "follows no value"),
        ("x == \x00", 6, "is not expected here"),
        ("x == 'a", 6, "is not expected here"),
        ("x == '\ud800'", 7, "lone surrogate"),
        ("(x", 2, "missing"),
        ("x)", 2, "closes nothing"),
        ("x == 99999999999999999999", 6, "invalid int"),
    ],
)
def test_what_cannot_be_bounded_or_read_is_refused_with_its_place(
    text: str, position: int, said: str
) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, NAMES)
    assert position == caught.value.position
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("text", "position", "said"),
    [
        ("x == '' || x.matches('[')", 22, "this is not a valid pattern: unclosed character class"),
        ("x.matches(r'(?=a)')", 11, "this is not a valid pattern: look-around"),
        (
            "timestamp(x).getHours('Mars/Phobos') > 1",
            14,
            "getHours() takes no arguments: times are in UTC",
        ),
    ],
)
def test_what_fails_whatever_the_values_are_is_refused_when_it_is_new(
    text: str, position: int, said: str
) -> None:
    """What is stored since before compiles as ever: it may never be worked out."""
    compile_expression(text, NAMES)
    with pytest.raises(ExpressionError) as caught:
        compile_new(text, NAMES)
    assert position == caught.value.position
    assert said in caught.value.message


@pytest.mark.parametrize("sign", ["", "-"])
@pytest.mark.parametrize("digits", ["9223372036854775809", "1" + "0" * 300])
def test_an_integer_of_more_than_64_bits_is_no_literal(sign: str, digits: str) -> None:
    """As the language has it: what stands in the text is refused as it is stored."""
    with pytest.raises(ExpressionError, match="invalid int literal"):
        compile_expression(f"x > {sign}{digits}", NAMES)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x > 9223372036854775806", b"9223372036854775807"),
        ("x == -9223372036854775808", b"-9223372036854775808"),
        ("x > 1.0", b"1" + b"0" * 30 + b".5"),
        ("x > 1.0", b"1.0e30"),
        (f"x == '{'9' * 30}'", b'"' + b"9" * 30 + b'"'),
    ],
)
def test_many_digits_that_are_no_integer_of_more_than_64_bits_are_read(
    text: str, value: bytes
) -> None:
    assert compile_expression(text, NAMES).holds({"x": value})


def test_what_is_new_and_right_is_compiled() -> None:
    text = "x.matches(r'^o\\.k$') && timestamp(y).getHours() < 24"
    values = {"x": b'"o.k"', "y": b'"2026-01-31T12:00:00Z"'}
    assert compile_new(text, NAMES).holds(values)


@pytest.mark.parametrize(
    ("text", "values", "said"),
    [
        ("x", {"x": b"1"}, "it gave a number"),
        ("x", {"x": b"null"}, "it gave null"),
        ("x + 1 > 0", {"x": b"9223372036854775807"}, "overflow"),
        ("x > 0", {"x": b"9223372036854775808"}, "more than 64 bits"),
        ("x < 0", {"x": b"-9223372036854775809"}, "more than 64 bits"),
        ("x > 0", {"x": b"18446744073709551616"}, "more than 64 bits"),
        ("x > 0", {"x": b"9" * 300}, "more than 64 bits"),
        ("x > 0", {"x": b"9" * 5_000}, "more than 64 bits"),
        ("x.a[0] > 0", {"x": b'{"a":[1' + b"0" * 400 + b"]}"}, "more than 64 bits"),
        ("x > 0", {"x": b"[" * 900 + b"9" * 20 + b"]" * 900}, "nested more than"),
        ("x > 0", {"x": b"[" * 30_000 + b"9" * 20 + b"]" * 30_000}, "not JSON"),
        ("x > 0", {"x": b"[1e400]"}, "beyond the largest double"),
        ("x > 0", {"x": b"NaN"}, "not JSON"),
        ("x > 0", {"x": b"nonsense"}, "not JSON"),
        ("x > 0", {}, "'x' has no value"),
        ("x > 0", {"x": b'"a"'}, "overload"),
        ("1 / x > 0", {"x": b"0"}, "division by zero"),
        ("x[3] == 1", {"x": b"[1]"}, "out of bounds"),
        ("x.absent == 1", {"x": b"{}"}, "no field 'absent'"),
        ("int(x) == 1", {"x": b'"one"'}, "invalid digit"),
        ("x == 1", {"x": b"[" * 65 + b"]" * 65}, "nested more than 64 deep"),
        ("x == 1", {"x": b"[" * 30_000 + b"]" * 30_000}, ""),
        ("x == ''", {"x": b'"' + b"a" * VALUES_BYTES_MAX + b'"'}, "the limit is 65536"),
    ],
)
def test_what_goes_wrong_over_values_is_one_kind_of_error(
    text: str, values: dict[str, bytes], said: str
) -> None:
    with pytest.raises(ExpressionError) as caught:
        compile_expression(text, NAMES).holds(values)
    assert said in caught.value.message


def test_values_that_are_not_read_count_for_nothing() -> None:
    assert compile_expression("x > 0", NAMES).holds({"x": b"1", "y": b"z" * 1_000_000})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 1", True),
        ("'text'", True),
        ("x + 1", True),
        ("[x]", True),
        ("[x][0]", False),
        ("{'a': x}.a", False),
        ("size(rows)", True),
        ("rows.size()", True),
        ("rows.size() > 1", False),
        ("rows.filter(row, row > 1)", True),
        ("rows.filter(row, row > 1)[0]", False),
        ("rows.exists(row, row > 1)", False),
        ("status.contains('a')", False),
        ("dyn(x)", False),
        ("x + 1 > 2", False),
        ("x ? y : status", False),
        ("x > 1 ? 1 : 2", True),
        ("x > 1 ? 1 : y", False),
        ("x > 1 ? 'a' : y > 1 ? 'b' : size(rows)", True),
        ("x > 1 ? {'a': x} : [y]", True),
        ("x + 1 ? true : false", True),
        ("x > 1 ? 1 : y || x", False),
        ("true", False),
        ("x", False),
        ("x.done", False),
        ("x.all(i, i + 1 > 2)", False),
    ],
)
def test_what_is_never_a_boolean_is_told_from_its_text(text: str, *, expected: bool) -> None:
    assert compile_expression(text, NAMES).is_never_boolean is expected


def test_a_value_alone_is_told_by_its_name() -> None:
    assert compile_expression(" x ", NAMES).name_alone == "x"
    assert compile_expression("x.y", NAMES).name_alone is None
    assert compile_expression("x > 1", NAMES).names == {"x"}


@pytest.mark.parametrize(
    "text",
    [
        "size(x.map(i, i)) > 0",
        "size(x.filter(i, true)) > 0",
        "x.all(i, i in y)",
        "x.all(i, !(9 in y))",
        "x.map(i, y) == x.map(i, y)",
        "x.map(i, y + y) == []",
        "x.map(i, x).all(j, j == x)",
        "x.all(i, i == 1)",
        "(" + "+".join("x" * 33) + ").all(i, i == 1)",
        "+".join("x" * 33) + " == []",
        "[x, x, x, x].all(i, i == y)",
    ],
)
@pytest.mark.parametrize("elements", [100, 1_800, 16_000])
def test_a_run_ends_soon_or_is_refused_before_it_begins(text: str, elements: int) -> None:
    value = orjson.dumps([1] * elements)
    expression = compile_expression(text, NAMES)
    begun = time.thread_time()
    try:
        expression.evaluate({"x": value, "y": value})
    except ExpressionError as error:
        assert "too long" in error.message  # noqa: PT017 (either end is right, each within its time)
    assert time.thread_time() - begun < SECONDS_MAX


def test_a_loop_over_a_full_input_is_within_the_bounds() -> None:
    rows = orjson.dumps([{"state": "ok", "size": n} for n in range(1_500)])
    expression = compile_expression("rows.all(row, row.state == status && row.size >= 0)", NAMES)
    assert expression.holds({"rows": rows, "status": b'"ok"'})


def test_one_program_serves_several_threads() -> None:
    expression = compile_expression("rows.exists(row, row.size == x)", NAMES)
    answers: list[bool] = []

    def ask(number: int) -> None:
        values = {"rows": ROWS, "x": str(number).encode()}
        answers.extend(expression.holds(values) for _ in range(100))

    threads = [threading.Thread(target=ask, args=(3 + n % 2,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (200, 200) == (answers.count(True), answers.count(False))


_pieces = st.sampled_from(
    [
        *(
            "x",
            "y",
            "rows",
            "status",
            "i",
            "1",
            "2u",
            "1.5",
            "'a'",
            '"b"',
            "true",
            "null",
            "r'\\d'",
        ),
        *("(", ")", "[", "]", "{", "}", ",", ".", ":", "?", " ", "\n", "//", "\\", "'", "\x00"),
        *("+", "-", "*", "/", "%", "==", "!=", "<", ">=", "&&", "||", "!", " in ", "é", "\ud800"),
        *(".all(i,", ".map(i,", ".filter(i,", "has(x.a)", "size(", "int(", "string(", "duration("),
        *("timestamp(", ".matches('a')", ".startsWith(", "9223372036854775807", "loop", "b'\\xff'"),
    ]
)
_texts = st.one_of(st.lists(_pieces, max_size=40).map("".join), st.text(max_size=60))
_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(text=_texts, values=st.fixed_dictionaries(dict.fromkeys(NAMES, _values)))
def test_nothing_but_an_expression_error_comes_out_and_soon(
    text: str, values: dict[str, object]
) -> None:
    begun = time.thread_time()
    try:
        expression = compile_expression(text, NAMES)
        _ = expression.is_never_boolean
        expression.evaluate({name: _json(value) for name, value in values.items()})
    except ExpressionError as error:
        assert error.message  # noqa: PT017 (an answer is as right as this error)
    assert time.thread_time() - begun < SECONDS_MAX


def _json(value: object) -> bytes:
    # orjson writes no integer above 64 bits.
    return json.dumps(value).encode("utf-8", "replace")
