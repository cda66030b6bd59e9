"""The builtin types and the conversions between them, from the schema's tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, LiteralString

from services.kit.pg import Db


@dataclass(frozen=True, slots=True)
class BuiltinType:
    """A builtin type."""

    name: str
    category: str
    python_type: str
    description: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """A method that converts one builtin type to another."""

    source: str
    target: str
    method: str
    is_lossless: bool


_LIST_BUILTINS: Final[LiteralString] = """
    SELECT name, category, python_type, description
      FROM type_definitions
     ORDER BY category, name
"""

_LIST_CONVERSIONS: Final[LiteralString] = """
    SELECT s.name AS source, t.name AS target, c.conversion_method AS method, c.is_lossless
      FROM type_compatibility c
      JOIN type_definitions s ON s.id = c.source_type_id
      JOIN type_definitions t ON t.id = c.target_type_id
     WHERE c.conversion_required AND c.is_compatible
     ORDER BY s.name, t.name
"""


async def list_builtins(db: Db) -> list[BuiltinType]:
    """List the builtin types."""
    return [
        BuiltinType(
            row["name"], row["category"], row["python_type"] or "", row["description"] or ""
        )
        for row in await db.fetch(_LIST_BUILTINS)
    ]


async def list_conversions(db: Db) -> list[Conversion]:
    """List the conversions between builtin types."""
    return [
        Conversion(row["source"], row["target"], row["method"], row["is_lossless"])
        for row in await db.fetch(_LIST_CONVERSIONS)
    ]
