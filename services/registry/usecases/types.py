"""List the builtin types, and compare two types as the ends of an edge."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final

from qflow.types import ANY, Type, TypeFormatError, Verdict, contains_named, from_text, verdict

from services.kit.caller import Caller
from services.kit.errors import invalid
from services.kit.pg import Pool, as_caller
from services.registry.domain.type_size import type_size
from services.registry.storage import type_matrix
from services.registry.storage.type_matrix import BuiltinType, Conversion
from services.registry.usecases.custom_types import Types, read_expressions

# Limits the comparisons of a verdict: each part of one type with each of the other.
COMPARISONS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class TypeText:
    """A type given by a caller, as a structural form or as an annotation."""

    form: str = ""
    expression: str = ""


@dataclass(frozen=True, slots=True)
class Comparison:
    """The verdict on an edge between two types."""

    source: Type
    target: Type
    verdict: Verdict


async def list_types(pool: Pool, caller: Caller) -> tuple[list[BuiltinType], list[Conversion]]:
    """List the builtin types and their conversions."""
    async with as_caller(pool, caller) as db:
        return await type_matrix.list_builtins(db), await type_matrix.list_conversions(db)


async def compare_types(
    deps: Types, caller: Caller, source: TypeText, target: TypeText, *, conversion: str
) -> Comparison:
    """Return the verdict on an edge between two types; the edge need not exist."""
    given = {"source": source, "target": target}
    written = {name: each.expression for name, each in given.items() if each.expression}
    read = (
        await read_expressions(
            deps,
            caller,
            list(written.values()),
            fields=[f"{name}.type_expression" for name in written],
        )
        if written
        else []
    )
    types = dict(zip(written, read, strict=True))
    for name, each in given.items():
        if each.form:
            types[name] = _from_text(each.form, f"{name}.type_json")
    if type_size(types["source"]) * type_size(types["target"]) > COMPARISONS_MAX:
        raise invalid("target", "TYPE_TOO_LARGE", "the two types are too large to be compared")
    said = await asyncio.to_thread(_judged, types["source"], types["target"], conversion)
    return Comparison(types["source"], types["target"], said)


def _judged(source: Type, target: Type, conversion: str) -> Verdict:
    said = verdict(source, target, conversion)
    if said.fits and not said.method and contains_named(source):
        # For a function both are the same type, but an edge cannot carry its values.
        return verdict(source, ANY)
    return said


def _from_text(text: str, field: str) -> Type:
    try:
        return from_text(text)
    except TypeFormatError as error:
        raise invalid(field, "TYPE_INVALID", str(error)) from None
