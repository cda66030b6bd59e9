"""Filterable fields of a list: a closed table, with the SQL of each operator of a field."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, LiteralString
from uuid import UUID

from services.kit.filter.language import (
    And,
    Comparison,
    Expression,
    Not,
    Or,
    Word,
    refused,
)
from services.kit.ids import canonical_uuid

Value = str | bool | int | UUID | datetime

_MOMENT: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
    r"([Tt][0-9]{2}:[0-9]{2}:[0-9]{2}([.][0-9]{1,6})?([Zz]|[+-][0-9]{2}:[0-9]{2}))?"
)
_BOOLEANS: Final = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class Field:
    """A field that filters may name.

    `sql` has the condition of each supported operator, with `{}` for the parameter. These are
    literals of the source: a filter selects among them, and adds no text of its own.
    """

    name: str
    sql: Mapping[str, LiteralString]
    read: Callable[[str], Value | None]
    wanted: str  # what a value must be, for error messages


@dataclass(frozen=True, slots=True)
class FieldTable:
    """All fields of one list; `words` is the condition of a word without a field.

    `families` make a field from a name with their prefix, as in `labels.env`, or None if such a
    name cannot be.
    """

    fields: Sequence[Field]
    words: LiteralString
    families: Mapping[str, Callable[[str], Field | None]] = field(default_factory=dict)

    def find(self, name: str) -> Field | None:
        """Return a field by its name; None if there is none."""
        for beginning, make in self.families.items():
            if name.startswith(beginning) and len(name) > len(beginning):
                return make(name)
        return next((each for each in self.fields if each.name == name), None)

    @property
    def names(self) -> str:
        """The names of all fields, for error messages."""
        return ", ".join([*(each.name for each in self.fields), *(f"{n}…" for n in self.families)])


def text_field(name: str, column: LiteralString) -> Field:
    """Make a text field: `=` is exact, `:` finds a substring, ignoring case."""
    return Field(
        name,
        {
            "=": f"{column} = {{}}::text",
            "!=": f"{column} <> {{}}::text",
            ":": f"strpos(lower({column}), lower({{}}::text)) > 0",
        },
        lambda text: text,
        "text",
    )


def flag_field(name: str, column: LiteralString) -> Field:
    """Make a boolean field."""
    conditions: dict[str, LiteralString] = {
        "=": f"{column} = {{}}::boolean",
        "!=": f"{column} <> {{}}::boolean",
    }
    return Field(name, conditions, _BOOLEANS.get, "true or false")


def id_field(name: str, column: LiteralString) -> Field:
    """Make a field that holds an id."""
    conditions: dict[str, LiteralString] = {
        "=": f"{column} = {{}}::uuid",
        "!=": f"{column} <> {{}}::uuid",
    }
    return Field(name, conditions, canonical_uuid, "a UUID")


def time_field(name: str, column: LiteralString) -> Field:
    """Make a field that holds a time."""
    conditions: dict[str, LiteralString] = {
        "=": f"{column} = {{}}::timestamptz",
        "!=": f"{column} <> {{}}::timestamptz",
        "<": f"{column} < {{}}::timestamptz",
        "<=": f"{column} <= {{}}::timestamptz",
        ">": f"{column} > {{}}::timestamptz",
        ">=": f"{column} >= {{}}::timestamptz",
    }
    return Field(name, conditions, _moment_from, "a moment like 2026-01-31T12:00:00Z, or a day")


def member_field(name: str, condition: LiteralString) -> Field:
    """Make a field that holds several texts; `:` tests for one of them, as a whole."""
    return Field(name, {":": condition}, lambda text: text, "text")


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as SQL, with its parameters."""

    sql: str
    parameters: tuple[Value, ...]


def compile_filter(expression: Expression, table: FieldTable, *, first: int) -> Condition:
    """Compile a filter to a condition with parameters from `$first` on.

    Its text consists of the table's literals; everything from the caller is a parameter. An unknown
    field, operator or value is `InvalidArgument` with its position.
    """
    parameters: list[Value] = []

    def put(condition: LiteralString, value: Value) -> str:
        parameters.append(value)
        return f"({condition.format(f'${first + len(parameters) - 1}')})"

    def visit(node: Expression) -> str:
        match node:
            case Word(text):
                return put(table.words, text)
            case Comparison():
                condition, value = _comparison(node, table)
                return put(condition, value)
            case Not(term):
                return f"(NOT {visit(term)})"
            case And(terms):
                return f"({' AND '.join([visit(term) for term in terms])})"
            case Or(terms):
                return f"({' OR '.join([visit(term) for term in terms])})"

    return Condition(visit(expression), tuple(parameters))


def required(expression: Expression | None) -> list[Word | Comparison]:
    """Return the terms that every matching row must fulfil on its own account."""
    match expression:
        case None | Not() | Or():
            return []
        case And(terms):
            return [each for term in terms for each in required(term)]
        case _:
            return [expression]


def _comparison(term: Comparison, table: FieldTable) -> tuple[LiteralString, Value]:
    known = table.find(term.name)
    if known is None:
        said = f"there is no field {term.name[:100]!r}; there are {table.names}"
        raise refused("FILTER_FIELD_UNKNOWN", term.place, said, known_fields=table.names)
    condition = known.sql.get(term.operator)
    if condition is None:
        operators = ", ".join(known.sql)
        said = f"{known.name} takes {operators}, not {term.operator}"
        raise refused("FILTER_OPERATOR_INVALID", term.place, said, expected=operators)
    value = known.read(term.value)
    if value is None:
        said = f"{known.name} is held against {known.wanted}, not {term.value[:100]!r}"
        raise refused("FILTER_VALUE_INVALID", term.value_place, said, expected=known.wanted)
    return condition, value


def _moment_from(text: str) -> datetime | None:
    """Parse RFC 3339 to the microsecond; a date alone is midnight UTC."""
    if not _MOMENT.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
