"""Reads the seed document: its statements, and every name in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_DOCUMENT = Path(__file__).with_name("database-schema.md")
_NOT_A_COLUMN = ("UNIQUE", "PRIMARY KEY", "CONSTRAINT", "FOREIGN KEY", "CHECK")


@dataclass(frozen=True)
class Names:
    """What the seed names."""

    columns: dict[str, dict[str, str]]  # table -> column -> type as written
    indexes: dict[str, str]  # index -> table
    functions: set[str]
    policies: dict[str, str]  # policy -> table


@cache
def statements() -> list[str]:
    """Every statement of the document's SQL blocks but the sample migration's, in order."""
    found: list[str] = []
    for block in re.findall(r"```sql\n(.*?)```", _DOCUMENT.read_text(encoding="utf-8"), re.DOTALL):
        if "BEGIN;\n\n" in block:
            continue  # the example of a migration: it changes nothing that is not there
        text = re.sub(r"--[^\n]*", "", block)
        # A function's body has semicolons of its own.
        pieces = re.split(r";(?=(?:[^$]*\$\$[^$]*\$\$)*[^$]*$)", text)
        found += [piece.strip() for piece in pieces if piece.strip()]
    return found


@cache
def names() -> Names:
    """Collect the names that must stay."""
    columns: dict[str, dict[str, str]] = {}
    indexes: dict[str, str] = {}
    functions: set[str] = set()
    policies: dict[str, str] = {}
    for statement in statements():
        if match := re.match(r"CREATE TABLE (\w+) \((.*)\)$", statement, re.DOTALL):
            columns[match[1]] = dict(_columns(match[2]))
        elif match := re.match(r"CREATE INDEX (\w+) ON (\w+)", statement):
            indexes[match[1]] = match[2]
        elif match := re.match(r"CREATE OR REPLACE FUNCTION (\w+)", statement):
            functions.add(match[1])
        elif match := re.match(r"CREATE POLICY (\w+) ON (\w+)", statement):
            policies[match[1]] = match[2]
    return Names(columns, indexes, functions, policies)


def _columns(body: str) -> list[tuple[str, str]]:
    found = []
    for piece in re.split(r",(?![^(]*\))", body):
        line = " ".join(piece.split())
        if not line.startswith(_NOT_A_COLUMN):
            name, rest = line.split(" ", 1)
            kind = re.split(r" (?:PRIMARY|UNIQUE|NOT NULL|DEFAULT|REFERENCES)", rest)[0]
            found.append((name, kind))
    return found
