"""What a caller writes to define a type, and what is made of it."""

from __future__ import annotations

import builtins
import keyword
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from qflow.types import Field, Record, Type

# Names that sources use for something else already.
RESERVED: Final = frozenset(
    {*keyword.kwlist, *keyword.softkwlist, *dir(builtins), *typing.__all__}
    | {"datetime", "date", "time", "timedelta", "Decimal", "UUID", "Path"}
)


@dataclass(frozen=True, slots=True)
class WrittenField:
    """One field, with its type as an annotation writes it."""

    name: str
    expression: str
    optional: bool


@dataclass(frozen=True, slots=True)
class Written:
    """A definition as it was written: by fields, or by a JSON Schema."""

    fields: tuple[WrittenField, ...] = ()
    json_schema: str = ""


def written_to_json(written: Written) -> dict[str, Any]:
    """Write what `custom_types.definition` holds besides the structural form."""
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
    """Read what `written_to_json` wrote."""
    if stored["kind"] == "json_schema":
        return Written(json_schema=stored["json_schema"])
    return Written(
        tuple(
            WrittenField(each["name"], each["type"], each["optional"]) for each in stored["fields"]
        )
    )


def record_of(name: str, fields: Sequence[WrittenField], types: Sequence[Type]) -> Record:
    """Make the record of some fields: its values are dicts, since no source has its class."""
    return Record(
        "typeddict",
        name,
        tuple(
            Field(each.name, of, not each.optional) for each, of in zip(fields, types, strict=True)
        ),
    )
