"""The closed list of conversions, with the resulting types.

The runner's agent implements them under these names; no text is ever evaluated as code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from qflow.types.model import (
    ANY,
    FLAG,
    SCALARS,
    Collection,
    Dict,
    Enum,
    Literal,
    Record,
    Scalar,
    Tuple,
    Type,
    Union,
    VariadicTuple,
    contains_named,
    union_of,
)

_Rule = Callable[[Type], "Type | None"]


def _scalars(source: str, target: str) -> _Rule:
    """Return the rule from one scalar to another; also for literals of the source's kind."""

    def apply(of: Type) -> Type | None:
        return SCALARS[target] if _is_kind(of, source) else None

    return apply


def _is_kind(of: Type, name: str) -> bool:
    match of:
        case Scalar():
            return of.name == name
        case Literal(values=values):
            return bool(values) and all(type(each).__name__ == name for each in values)
        case Union(any_of=members):
            return all(_is_kind(member, name) for member in members)
        case _:
            return False


def _tuple_to_list(of: Type) -> Type | None:
    match of:
        case Tuple(items=items):
            return Collection("list", union_of(items) if items else Literal(()))
        case VariadicTuple(item=item):
            return Collection("list", item)
        case _:
            return None


def _to_list(kind: str) -> _Rule:
    def apply(of: Type) -> Type | None:
        if isinstance(of, Collection) and of.kind == kind:
            return Collection("list", of.item)
        return None

    return apply


def _list_to_tuple(of: Type) -> Type | None:
    if isinstance(of, Collection) and of.kind == "list":
        return VariadicTuple(of.item)
    return None


def _list_to_set(of: Type) -> Type | None:
    if isinstance(of, Collection) and of.kind == "list":
        return Collection("set", of.item)
    return None


def _enum_to_value(of: Type) -> Type | None:
    if not isinstance(of, Enum):
        return None
    if of.base == FLAG:
        return SCALARS["int"]
    values = tuple(value for _, value in of.members)
    if any(isinstance(value, float) for value in values):
        return SCALARS["float"] if all(isinstance(value, float) for value in values) else None
    return Literal(values)


def _record_to_dict(of: Type) -> Type | None:
    if not isinstance(of, Record):
        return None
    types = [each.type for each in of.fields]
    return Dict(SCALARS["str"], union_of(types) if types else Literal(()))


def _value_to_json(of: Type) -> Type | None:
    return None if contains_named(of) else SCALARS["str"]


def _json_to_value(of: Type) -> Type | None:
    return ANY if _is_kind(of, "str") else None


# Inserted automatically if types do not fit without: the first that makes them fit.
LOSSLESS: Final[Mapping[str, _Rule]] = {
    "bool_to_int": _scalars("bool", "int"),
    "int_to_float": _scalars("int", "float"),  # exact up to 2**53, refused beyond
    "int_to_decimal": _scalars("int", "decimal"),
    "float_to_decimal": _scalars("float", "decimal"),
    "int_to_str": _scalars("int", "str"),
    "float_to_str": _scalars("float", "str"),
    "bool_to_str": _scalars("bool", "str"),
    "decimal_to_str": _scalars("decimal", "str"),
    "uuid_to_str": _scalars("uuid", "str"),
    "datetime_to_str": _scalars("datetime", "str"),
    "date_to_str": _scalars("date", "str"),
    "date_to_datetime": _scalars("date", "datetime"),
    "bytes_to_base64": _scalars("bytes", "str"),
    "tuple_to_list": _tuple_to_list,
    "set_to_list": _to_list("set"),
    "frozenset_to_list": _to_list("frozenset"),
    "list_to_tuple": _list_to_tuple,
    "enum_to_value": _enum_to_value,
    "record_to_dict": _record_to_dict,
}

# Lossless, but only if named by an edge: otherwise every edge into text would fit.
NAMED_ONLY: Final[Mapping[str, _Rule]] = {
    "value_to_json": _value_to_json,
}

# Lossy, or may fail at run time: only if named by an edge.
LOSSY: Final[Mapping[str, _Rule]] = {
    "str_to_int": _scalars("str", "int"),
    "str_to_float": _scalars("str", "float"),
    "str_to_bool": _scalars("str", "bool"),
    "str_to_decimal": _scalars("str", "decimal"),
    "str_to_datetime": _scalars("str", "datetime"),
    "str_to_date": _scalars("str", "date"),
    "str_to_uuid": _scalars("str", "uuid"),
    "float_to_int": _scalars("float", "int"),
    "list_to_set": _list_to_set,
    "json_to_value": _json_to_value,
}

# Those that an edge has to name.
NAMED: Final[Mapping[str, _Rule]] = {**NAMED_ONLY, **LOSSY}
METHODS: Final[Mapping[str, _Rule]] = {**LOSSLESS, **NAMED_ONLY, **LOSSY}
