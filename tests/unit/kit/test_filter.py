from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.errors import InvalidArgument
from services.kit.filter.fields import (
    FieldTable,
    compile_filter,
    flag_field,
    id_field,
    member_field,
    required,
    text_field,
    time_field,
)
from services.kit.filter.language import (
    DEPTH_MAX,
    FILTER_CHARS_MAX,
    OPERATORS,
    TERMS_MAX,
    And,
    Comparison,
    Expression,
    Not,
    Or,
    Word,
    parse,
)
from services.kit.filter.order import Order, OrderField, order_from
from tests.support.cost import counted

TABLE = FieldTable(
    (
        text_field("name", "x.name"),
        flag_field("public", "x.is_public"),
        id_field("owner", "x.created_by"),
        time_field("create_time", "x.created_at"),
        member_field("tags", "EXISTS (SELECT FROM tags WHERE name = {}::text)"),
    ),
    "x.body = {0}::text",
)
NAME = OrderField("name", "x.name", "text", str)
NEWEST = OrderField("create_time", "x.created_at", "timestamptz", datetime)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", None),
        (" \t\n", None),
        ("load", Word("load")),
        ("load-data", Word("load-data")),
        ('"load data"', Word("load data")),
        ("'it is \\'so\\''", Word("it is 'so'")),
        ('"a \\\\ b"', Word("a \\ b")),
        ('"AND"', Word("AND")),
        ("android", Word("android")),
        ("load data", And((Word("load"), Word("data")))),
        ("a AND b", And((Word("a"), Word("b")))),
        # As AIP-160 has it: OR binds tighter than AND.
        ("a AND b OR c", And((Word("a"), Or((Word("b"), Word("c")))))),
        ("a b OR c", And((Word("a"), Or((Word("b"), Word("c")))))),
        ("(a AND b) OR c", Or((And((Word("a"), Word("b"))), Word("c")))),
        ("NOT a", Not(Word("a"))),
        ("-a", Not(Word("a"))),
        ("-(a OR b)", Not(Or((Word("a"), Word("b"))))),
        ("NOT NOT a", Not(Not(Word("a")))),
        ('name = "x y"', Comparison("name", "=", "x y")),
        ("name:x", Comparison("name", ":", "x")),
        ("name != x", Comparison("name", "!=", "x")),
        ("at>=2026-01-01T00:00:00Z", Comparison("at", ">=", "2026-01-01T00:00:00Z")),
        ("((a))", Word("a")),
        ("a%_\\*", Word("a%_\\*")),
    ],
)
def test_a_filter_is_read(text: str, expected: Expression | None) -> None:
    assert expected == parse(text)


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("a AND", 6, "a field, a word"),
        ("AND a", 1, "a field, a word"),
        ("a OR OR b", 6, "a field, a word"),
        ("(a", 3, '")"'),
        ("a)", 2, "the end"),
        ("()", 2, "a field, a word"),
        ("NOT", 4, "a field, a word"),
        ("name =", 7, "a value"),
        ("name = (x)", 8, "a value"),
        ("= x", 1, "before the operator"),
        ("name ! x", 6, '"!="'),
        ('"open', 1, '"'),
        ('name = "open', 8, '"'),
        ('"name" = x', 1, ""),
        ("a \0", 3, ""),
    ],
)
def test_a_fault_is_told_with_its_place_and_what_would_be_right(
    text: str, position: int, expected: str
) -> None:
    """B79."""
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    assert ("FILTER_SYNTAX", str(position)) == (
        caught.value.reason,
        caught.value.facts["position"],
    )
    assert expected in caught.value.facts["expected"]
    assert "filter" == caught.value.fields[0].field


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("colour = red", "FILTER_FIELD_UNKNOWN", "name, public, owner, create_time, tags"),
        ("a AND is_public = true", "FILTER_FIELD_UNKNOWN", "character 7"),
        ("http://example.org", "FILTER_FIELD_UNKNOWN", "http"),
        ("name < x", "FILTER_OPERATOR_INVALID", "=, !=, :"),
        ("public : true", "FILTER_OPERATOR_INVALID", "=, !="),
        ("tags = x", "FILTER_OPERATOR_INVALID", ":"),
        ("public = yes", "FILTER_VALUE_INVALID", "true or false"),
        ("owner = me", "FILTER_VALUE_INVALID", "UUID"),
        ("create_time > yesterday", "FILTER_VALUE_INVALID", "2026-01-31"),
        ("create_time > 2026-13-01", "FILTER_VALUE_INVALID", "moment"),
        ("create_time > 0001-01-01T00:00:00+23:00", "FILTER_VALUE_INVALID", "moment"),
        ("create_time > 9999-12-31T23:59:59-23:00", "FILTER_VALUE_INVALID", "moment"),
    ],
)
def test_what_a_list_does_not_have_is_refused_with_what_it_has(
    text: str, reason: str, said: str
) -> None:
    """B79, B77."""
    expression = parse(text)
    assert expression is not None
    with pytest.raises(InvalidArgument) as caught:
        compile_filter(expression, TABLE, first=1)
    assert reason == caught.value.reason
    assert said in str(caught.value)


def test_a_filter_is_bounded_in_length_depth_and_terms() -> None:
    """B79."""
    for inside in (f"{'(' * DEPTH_MAX}a{')' * DEPTH_MAX}", "NOT " * DEPTH_MAX + "a"):
        assert parse(inside) is not None
    assert parse(" ".join(["a"] * TERMS_MAX)) is not None
    assert parse("a" * FILTER_CHARS_MAX) is not None
    for outside, reason in (
        ("(" * 990 + "a" + ")" * 990, "FILTER_TOO_DEEP"),
        ("-" * (DEPTH_MAX + 1) + "a", "FILTER_TOO_DEEP"),
        (" ".join(["a"] * (TERMS_MAX + 1)), "FILTER_TOO_LONG"),
        ("a" * (FILTER_CHARS_MAX + 1), "FILTER_TOO_LONG"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            parse(outside)
        assert reason == caught.value.reason


@pytest.mark.parametrize(
    "text",
    [
        "(" * 2000,
        '"' * 2000,
        "-" * 2000,
        "\\" * 2000,
        "a:" * 1000,
        "((a OR " * 280,
        "a" + " " * 1999,
    ],
)
def test_no_filter_takes_long_to_read(text: str) -> None:
    """B79: far below 50 ms, whatever it is."""
    with counted() as cost, suppress(InvalidArgument):
        parse(text)
    assert cost.ms < 50


def test_what_a_caller_wrote_is_a_parameter_and_never_sql() -> None:
    evil = "'); DROP TABLE users; -- $1 {} %s"
    expression = parse(f'"{evil}" AND name : "{evil}" AND NOT (tags:"{evil}" OR public = true)')
    assert expression is not None
    compiled = compile_filter(expression, TABLE, first=7)
    assert (
        "((x.body = $7::text) AND (strpos(lower(x.name), lower($8::text)) > 0) AND"
        " (NOT ((EXISTS (SELECT FROM tags WHERE name = $9::text)) OR"
        " (x.is_public = $10::boolean))))"
    ) == compiled.sql
    assert (evil, evil, evil, True) == compiled.parameters


def test_values_are_read_by_the_kind_of_their_field() -> None:
    owner = "0190D6C1-5F2E-7C3A-9D5B-1F0E2D3C4B5A"
    text = f"owner = {owner} create_time < 2026-01-31 create_time >= 2026-01-31T13:00:00.5+01:00"
    expression = parse(text)
    assert expression is not None
    expected = (
        UUID(owner),
        datetime(2026, 1, 31, tzinfo=UTC),
        datetime(2026, 1, 31, 12, 0, 0, 500_000, tzinfo=UTC),
    )
    assert expected == compile_filter(expression, TABLE, first=1).parameters


def test_what_every_row_must_have_is_what_stands_under_and_alone() -> None:
    expression = parse('a (b name:"c") -d (e OR f)')
    assert [Word("a"), Word("b"), Comparison("name", ":", "c")] == required(expression)
    assert [] == required(parse("a OR b"))
    assert [] == required(None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Order(NEWEST, descending=True)),
        ("  ", Order(NEWEST, descending=True)),
        ("name", Order(NAME, descending=False)),
        (" name  desc ", Order(NAME, descending=True)),
        ("create_time asc", Order(NEWEST, descending=False)),
    ],
)
def test_an_order_is_read(text: str, expected: Order) -> None:
    assert expected == order_from(text, (NEWEST, NAME), default=Order(NEWEST, descending=True))


@pytest.mark.parametrize(
    "text",
    [
        *("name; select", "name,create_time", "NAME", "id", "name DESC", "name desc desc"),
        *("name\n", "1", "x.name"),
    ],
)
def test_an_order_that_is_not_on_the_list_is_refused(text: str) -> None:
    """B78."""
    with pytest.raises(InvalidArgument) as caught:
        order_from(text, (NEWEST, NAME), default=Order(NEWEST, descending=True))
    assert ("ORDER_BY_INVALID", "order_by") == (caught.value.reason, caught.value.fields[0].field)
    assert "create_time, name" in str(caught.value)


_NAMES = st.from_regex(r"[a-z_][a-z0-9_.]{0,10}", fullmatch=True)
_TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
_TERMS = st.one_of(
    st.builds(Word, _TEXTS),
    st.builds(Comparison, _NAMES, st.sampled_from(OPERATORS), _TEXTS),
)


def _joined(inside: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(inside, min_size=2, max_size=3).map(tuple)
    return st.one_of(st.builds(Not, inside), st.builds(And, several), st.builds(Or, several))


def _written(expression: Expression) -> str:
    """Write a filter so that it must be read back as it was: everything quoted and in brackets."""
    match expression:
        case Word(text):
            return _quoted(text)
        case Comparison(name, operator, value):
            return f"{name} {operator} {_quoted(value)}"
        case Not(term):
            return f"-({_written(term)})"
        case And(terms):
            return " AND ".join(f"({_written(term)})" for term in terms)
        case Or(terms):
            return " OR ".join(f"({_written(term)})" for term in terms)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@given(st.recursive(_TERMS, _joined, max_leaves=8))
def test_what_is_written_is_read_back(expression: Expression) -> None:
    text = _written(expression)
    if len(text) <= FILTER_CHARS_MAX:
        assert expression == parse(text)


_PIECES = ["(", ")", "AND", "OR", "NOT", "-", '"', "'", "\\", "name", "=", ":", "!", "<=", "a", " "]
_PIECES += ["public", "true", "tags", "$1", "%s", "{}", "\0", "\n"]


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=200), st.lists(st.sampled_from(_PIECES)).map("".join)))
def test_any_text_is_a_filter_or_refused_and_nothing_else(text: str) -> None:
    """B79: no other error, and of the caller's text nothing but what is a parameter."""
    refusal: InvalidArgument | None = None
    sql = ""
    try:
        expression = parse(text)
        sql = "" if expression is None else compile_filter(expression, TABLE, first=1).sql
    except InvalidArgument as error:
        refusal = error
    if refusal is not None:
        assert re.fullmatch("FILTER_[A-Z_]+", refusal.reason)
        assert 1 <= int(refusal.facts["position"]) <= len(text) + 1
    known = {each.format("$") for field in TABLE.fields for each in field.sql.values()}
    known.add(TABLE.words.format("$"))
    sql = re.sub(r"\$\d+", "$", sql)
    for condition in known:
        sql = sql.replace(f"({condition})", "?")
    assert re.fullmatch(r"(AND|OR|NOT|[?() ])*", sql), sql
