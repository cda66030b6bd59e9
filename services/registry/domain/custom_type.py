"""The definition of a custom type as written by a caller, and its record type."""

from __future__ import annotations

import builtins
import keyword
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qflow.types import Field, Record, Type

# Names that already have a meaning in sources.
RESERVED: Final = frozenset(
    {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), *typing.__all__}
    | {"datetime", "date", "time", "timedelta", "Decimal", "UUID", "Path"}
)


@dataclass(frozen=True, slots=True)
class WrittenField:
    """A field with its type as an annotation."""

    name: str
    expression: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Written:
    """A definition as written: by fields, or by a JSON Schema."""

    fields: tuple[WrittenField, ...] = ()
    json_schema: str = ""


def written_to_json(written: Written) -> dict[str, Any]:
    """Return what `custom_types.definition` stores besides the structural form."""
    if written.json_schema:
        return {"kind": "json_schema", "json_schema": written.json_schema}
    return {
        "kind": "fields",
        "fields": [
            {"name": each.name, "type": each.expression, "optional": each.optional}
            for each in written.fields
        ],
    }


def written_from_json(stored: Mapping[str, Any]) -> Written:
    """Parse the result of `written_to_json`."""
    if stored["kind"] == "json_schema":
        return Written(json_schema=stored["json_schema"])
    return Written(
        tuple(
            WrittenField(each["name"], each["type"], each["optional"]) for each in stored["fields"]
        )
    )


def record_of(name: str, fields: Sequence[WrittenField], types: Sequence[Type]) -> Record:
    """Build a record type; its values are dicts, since no source defines a class for it."""
    return Record(
        "typeddict",
        name,
        tuple(
            Field(each.name, of, not each.optional) for each, of in zip(fields, types, strict=True)
        ),
    )
