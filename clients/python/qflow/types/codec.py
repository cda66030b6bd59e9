"""The structural form of types: JSON objects, decoded strictly and encoded canonically."""

# Each function here is one table over the closed set of types.
# ruff: noqa: C901, PLR0911

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from qflow.types.model import (
    COLLECTION_KINDS,
    FLAG,
    RECORD_KINDS,
    SCALARS,
    Collection,
    Constant,
    Dict,
    Enum,
    Field,
    Literal,
    Named,
    Record,
    Scalar,
    Tuple,
    Type,
    Union,
    VariadicTuple,
    constant_key,
    union_of,
)
from qflow.types.values import ValueTextError, dump_exact, parse_strict

DEPTH_MAX: Final = 64
# Limits the cost of verdicts, which compare the parts of one type with those of another.
PARTS_MAX: Final = 1_000
MEMBERS_MAX: Final = 1_000
# JSONB and the services' JSON codec are exact for 64-bit integers.
_INTEGER_MAX: Final = 2**63 - 1
_NAME: Final = re.compile(r"[^\W\d]\w{0,254}")
_DOTTED: Final = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_DOTTED_CHARS_MAX: Final = 255


class TypeFormatError(ValueError):
    """An invalid structural form; `path` says where."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.message = message
        self.path = path


def from_json(form: object) -> Type:
    """Decode a structural form; refuses what is unknown, missing, too deep or too large."""
    return _Reader().read(form, path="", depth=1)


def to_json(of: Type) -> dict[str, Any]:
    """Return the structural form as plain Python values."""
    match of:
        case Scalar(name=name):
            return {"t": name}
        case Collection(kind=kind, item=item):
            return {"t": kind, "item": to_json(item)}
        case Tuple(items=items):
            return {"t": "tuple", "items": [to_json(item) for item in items]}
        case VariadicTuple(item=item):
            return {"t": "tuple", "item": to_json(item)}
        case Dict(key=key, value=value):
            return {"t": "dict", "key": to_json(key), "value": to_json(value)}
        case Union(any_of=members):
            return {"t": "union", "any_of": [to_json(member) for member in members]}
        case Literal(values=values):
            return {"t": "literal", "values": list(values)}
        case Record(kind=kind, name=name, fields=fields):
            written = [
                {"name": each.name, "type": to_json(each.type), "required": each.required}
                for each in fields
            ]
            return {"t": "record", "kind": kind, "name": name, "fields": written}
        case Enum(name=name, base=base, members=pairs):
            return {"t": "enum", "name": name, "base": base, "members": dict(pairs)}
        case Named(name=name):
            return {"t": "named", "name": name}


def from_text(text: str | bytes) -> Type:
    """Decode a structural form from JSON text."""
    try:
        form = parse_strict(text, depth_max=4 * DEPTH_MAX)
    except ValueTextError as error:
        raise TypeFormatError(error.message, error.path) from None
    return from_json(form)


def to_text(of: Type) -> str:
    """Return the structural form as JSON text."""
    return dump_exact(to_json(of), depth_max=4 * DEPTH_MAX)


class _Reader:
    """Decodes one form, and counts its parts."""

    def __init__(self) -> None:
        self._parts = 0

    def read(self, form: object, *, path: str, depth: int) -> Type:
        if not isinstance(form, dict):
            raise TypeFormatError("a type is a JSON object", path)
        self._parts += 1
        if self._parts > PARTS_MAX:
            raise TypeFormatError(f"has more than {PARTS_MAX} parts", path)
        if depth > DEPTH_MAX:
            raise TypeFormatError(f"is nested deeper than {DEPTH_MAX}", path)
        tag = form.get("t")
        if isinstance(tag, str) and tag in SCALARS:
            _only(form, {"t"}, path)
            return SCALARS[tag]
        reader = _READERS.get(tag) if isinstance(tag, str) else None
        if reader is None:
            raise TypeFormatError(f"{tag!r} is not a type's tag", _join(path, "t"))
        return reader(self, form, path, depth)

    def part(self, form: Mapping[str, object], key: str, path: str, depth: int) -> Type:
        if key not in form:
            raise TypeFormatError(f"lacks {key!r}", path)
        return self.read(form[key], path=_join(path, key), depth=depth + 1)

    def parts(
        self, form: Mapping[str, object], key: str, path: str, depth: int
    ) -> tuple[Type, ...]:
        return tuple(
            self.read(each, path=f"{_join(path, key)}[{index}]", depth=depth + 1)
            for index, each in enumerate(_array(form, key, path))
        )


def _read_collection(self: _Reader, form: Mapping[str, Any], path: str, depth: int) -> Type:
    _only(form, {"t", "item"}, path)
    return Collection(form["t"], self.part(form, "item", path, depth))


def _read_tuple(self: _Reader, form: Mapping[str, Any], path: str, depth: int) -> Type:
    if "item" in form:
        _only(form, {"t", "item"}, path)
        return VariadicTuple(self.part(form, "item", path, depth))
    _only(form, {"t", "items"}, path)
    return Tuple(self.parts(form, "items", path, depth))


def _read_dict(self: _Reader, form: Mapping[str, Any], path: str, depth: int) -> Type:
    _only(form, {"t", "key", "value"}, path)
    return Dict(self.part(form, "key", path, depth), self.part(form, "value", path, depth))


def _read_union(self: _Reader, form: Mapping[str, Any], path: str, depth: int) -> Type:
    _only(form, {"t", "any_of"}, path)
    members = self.parts(form, "any_of", path, depth)
    if not members:
        raise TypeFormatError("a union has at least one member", path)
    return union_of(members)


def _read_literal(_self: _Reader, form: Mapping[str, Any], path: str, _depth: int) -> Type:
    _only(form, {"t", "values"}, path)
    values = _array(form, "values", path)
    if not values:
        raise TypeFormatError("a literal has at least one value", path)
    for index, value in enumerate(values):
        _constant(value, f"{_join(path, 'values')}[{index}]", floats=False)
    # The canonical form has no duplicates.
    unique = {constant_key(value): value for value in values}
    return Literal(tuple(unique.values()))


def _read_record(self: _Reader, form: Mapping[str, Any], path: str, depth: int) -> Type:
    _only(form, {"t", "kind", "name", "fields"}, path)
    if form.get("kind") not in RECORD_KINDS:
        raise TypeFormatError(f"is none of {', '.join(RECORD_KINDS)}", _join(path, "kind"))
    fields = []
    for index, each in enumerate(_array(form, "fields", path)):
        here = f"{_join(path, 'fields')}[{index}]"
        if not isinstance(each, dict):
            raise TypeFormatError("a field is a JSON object", here)
        _only(each, {"name", "type", "required"}, here)
        required = each.get("required", True)
        if not isinstance(required, bool):
            raise TypeFormatError("is true or false", _join(here, "required"))
        name = _name(each, "name", here, _NAME)
        fields.append(Field(name, self.part(each, "type", here, depth), required))
    if len({each.name for each in fields}) != len(fields):
        raise TypeFormatError("has two fields of one name", path)
    return Record(form["kind"], _name(form, "name", path, _DOTTED), tuple(fields))


def _read_enum(_self: _Reader, form: Mapping[str, Any], path: str, _depth: int) -> Type:
    _only(form, {"t", "name", "base", "members"}, path)
    members = form.get("members")
    if not isinstance(members, dict) or not 0 < len(members) <= MEMBERS_MAX:
        raise TypeFormatError(f"has 1 to {MEMBERS_MAX} members", path)
    for name, value in members.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise TypeFormatError("has a member whose name is no identifier", path)
        here = _join(_join(path, "members"), name)
        _constant(value, here, floats=True)
        if form.get("base") == FLAG and (type(value) is not int or value < 0):
            raise TypeFormatError("a flag's member is an integer from 0", here)
    return Enum(
        _name(form, "name", path, _DOTTED), _name(form, "base", path, _NAME), tuple(members.items())
    )


def _read_named(_self: _Reader, form: Mapping[str, Any], path: str, _depth: int) -> Type:
    _only(form, {"t", "name"}, path)
    return Named(_name(form, "name", path, _DOTTED))


_READERS: Final[Mapping[str, Callable[[_Reader, Mapping[str, Any], str, int], Type]]] = {
    **dict.fromkeys(COLLECTION_KINDS, _read_collection),
    "tuple": _read_tuple,
    "dict": _read_dict,
    "union": _read_union,
    "literal": _read_literal,
    "record": _read_record,
    "enum": _read_enum,
    "named": _read_named,
}


def _only(form: Mapping[str, object], keys: set[str], path: str) -> None:
    extra = sorted(str(key) for key in form.keys() - keys)
    if extra:
        raise TypeFormatError(f"has an unknown key {extra[0]!r}", path)


def _array(form: Mapping[str, object], key: str, path: str) -> Sequence[Any]:
    found = form.get(key)
    if not isinstance(found, list) or len(found) > MEMBERS_MAX:
        raise TypeFormatError(f"is an array of at most {MEMBERS_MAX}", _join(path, key))
    return found


def _name(form: Mapping[str, object], key: str, path: str, pattern: re.Pattern[str]) -> str:
    found = form.get(key)
    if not isinstance(found, str) or len(found) > _DOTTED_CHARS_MAX or not pattern.fullmatch(found):
        raise TypeFormatError("is not a name", _join(path, key))
    return found


def _constant(value: Constant | object, path: str, *, floats: bool) -> None:
    if isinstance(value, float) and not floats:
        raise TypeFormatError("a literal is text, an integer, true, false or null", path)
    if not isinstance(value, str | int | float | bool | None):
        raise TypeFormatError("is not a constant", path)
    if isinstance(value, int) and abs(value) > _INTEGER_MAX:
        raise TypeFormatError("is an integer of more than 64 bits", path)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
