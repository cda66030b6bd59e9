"""What a list may be filtered by: a closed table of fields, each with the SQL of its operators."""

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

    `sql` has the condition of each operator that the field takes, with `{}` where the parameter
    goes. It is written in the source: a filter chooses among such texts and adds none.
    """

    name: str
    sql: Mapping[str, LiteralString]
    read: Callable[[str], Value | None]
    wanted: str  # what a value must be, for whoever wrote another


@dataclass(frozen=True, slots=True)
class FieldTable:
    """All that one list may be filtered by; `words` is the condition of a word without a field.

    `families` make a field of any name that begins with their key: `labels.` and what follows.
    """

    fields: Sequence[Field]
    words: LiteralString
    families: Mapping[str, Callable[[str], Field]] = field(default_factory=dict)

    def find(self, name: str) -> Field | None:
        """Find a field by its name."""
        for beginning, make in self.families.items():
            if name.startswith(beginning) and len(name) > len(beginning):
                return make(name)
        return next((each for each in self.fields if each.name == name), None)

    @property
    def names(self) -> str:
        """Name all fields, for whoever named another."""
        return ", ".join([*(each.name for each in self.fields), *(f"{n}…" for n in self.families)])


def text_field(name: str, column: LiteralString) -> Field:
    """Make a field of text: `=` is exact, `:` finds a part in letters of either case."""
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
    """Make a field that is true or false."""
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
    """Make a field that holds a moment."""
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
    """Make a field that holds several texts, one of which `:` asks for as a whole."""
    return Field(name, {":": condition}, lambda text: text, "text")


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition as SQL, whose parameters begin at the number that was asked for."""

    sql: str
    parameters: tuple[Value, ...]


def compile_filter(expression: Expression, table: FieldTable, *, first: int) -> Condition:
    """Compile a filter to a condition with parameters from `$first` on.

    The text is put together of the table's own; all that the caller wrote is a parameter. A field,
    an operator or a value that the table does not have is `InvalidArgument` with its place.
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
    """List the terms that every row which is found must fulfil by itself."""
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
    """Read RFC 3339 to the microsecond; a day alone begins at midnight UTC."""
    if not _MOMENT.fullmatch(text):
        return None
    try:
        moment = datetime.fromisoformat(text.upper())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
