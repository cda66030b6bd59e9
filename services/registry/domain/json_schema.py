"""Convert JSON Schemas to types, as far as they describe a value's structure.

A keyword that narrows values further, such as `minimum` or `pattern`, is rejected, since nothing
would enforce it. An object with `properties` has exactly those fields, as records do here.
"""

# Each function here is one table over a closed set of keywords.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from qflow.types import (
    ANY,
    NONE,
    SCALARS,
    Collection,
    Dict,
    Field,
    Literal,
    Record,
    Tuple,
    Type,
    TypeFormatError,
    ValueTextError,
    from_json,
    parse_strict,
    to_json,
    union_of,
)

DEPTH_MAX: Final = 64
# Bounds the expansion of references, before the type's size is measured.
_PARTS_MAX: Final = 1_000
_NOTES: Final = frozenset(
    {"$schema", "$comment", "$defs", "definitions", "title", "description", "examples"}
    | {"deprecated", "default"}
)
_FORMATS: Final = {"date-time": "datetime", "date": "date", "time": "time", "uuid": "uuid"}
_PLAIN: Final = {"integer": "int", "number": "float", "boolean": "bool", "null": "none"}
_KEYWORDS: Final[Mapping[str, frozenset[str]]] = {
    "string": frozenset({"format", "contentEncoding"}),
    "array": frozenset({"items", "prefixItems"}),
    "object": frozenset({"properties", "required", "additionalProperties"}),
}


class SchemaError(ValueError):
    """A schema that no type can express; `reason` is its code, and the message names the place."""

    def __init__(self, reason: str, message: str, path: str) -> None:
        super().__init__(f"{path or 'the schema'}: {message}")
        self.reason = reason


def type_from_schema(text: str, *, name: str) -> Type:
    """Convert a JSON Schema to a type; records are named after the type and their place in it."""
    try:
        schema = parse_strict(text, depth_max=4 * DEPTH_MAX)
    except ValueTextError as error:
        raise SchemaError("SCHEMA_INVALID", str(error), "") from None
    found = _Reader(schema).read(schema, path="", name=name, depth=1)
    try:
        return from_json(to_json(found))
    except TypeFormatError as error:
        raise SchemaError("SCHEMA_INVALID", error.message, error.path) from None


class _Reader:
    """Converts one schema, following its references."""

    def __init__(self, root: object) -> None:
        self._root = root
        self._parts = 0
        self._open: list[str] = []

    def read(self, schema: object, *, path: str, name: str, depth: int) -> Type:
        self._parts += 1
        if depth > DEPTH_MAX:
            raise SchemaError("TYPE_TOO_DEEP", f"is nested deeper than {DEPTH_MAX}", path)
        if self._parts > _PARTS_MAX:
            raise SchemaError("TYPE_TOO_LARGE", f"has more than {_PARTS_MAX} parts", path)
        if schema is True:
            return ANY
        if not isinstance(schema, dict):
            raise SchemaError("SCHEMA_INVALID", "a schema is an object, or true", path)
        said = {key: value for key, value in schema.items() if key not in _NOTES}
        for keyword, reader in _WHOLE.items():
            if keyword in said:
                _only(said, {keyword, "type"} if keyword in ("enum", "const") else {keyword}, path)
                return reader(self, said[keyword], path, name, depth)
        return self._typed(said, path, name, depth)

    def _typed(self, said: dict[str, Any], path: str, name: str, depth: int) -> Type:
        kind = said.pop("type", None)
        if kind is None:
            _only(said, set(), path)
            return ANY
        if isinstance(kind, list):
            if not kind:
                raise SchemaError("SCHEMA_INVALID", "names no type", f"{path}.type")
            # With several types, a keyword applies only to the type that has it.
            _only(said, {key for each in kind if isinstance(each, str) for key in _of(each)}, path)
            own = [({k: v for k, v in said.items() if k in _of(each)}, each) for each in kind]
            return union_of(self._kind(each, rest, path, name, depth) for rest, each in own)
        return self._kind(kind, said, path, name, depth)

    def _kind(self, kind: object, said: dict[str, Any], path: str, name: str, depth: int) -> Type:
        if not isinstance(kind, str) or kind not in (*_PLAIN, *_KEYWORDS):
            raise SchemaError("TYPE_UNKNOWN", f"{str(kind)[:100]!r} is not a type", f"{path}.type")
        _only(said, set(_of(kind)), path)
        match kind:
            case "string":
                return _string(said, path)
            case "array":
                return self._array(said, path, name, depth)
            case "object":
                return self._object(said, path, name, depth)
            case _:
                return SCALARS[_PLAIN[kind]]

    def _array(self, said: dict[str, Any], path: str, name: str, depth: int) -> Type:
        if "prefixItems" in said:
            if said.get("items", False) is not False or not isinstance(said["prefixItems"], list):
                message = "prefixItems is an array, beside which items is false"
                raise SchemaError("SCHEMA_INVALID", message, path)
            places = enumerate(said["prefixItems"])
            return Tuple(
                tuple(
                    self.read(
                        each, path=f"{path}.prefixItems[{at}]", name=f"{name}.item", depth=depth + 1
                    )
                    for at, each in places
                )
            )
        items = said.get("items", True)
        return Collection(
            "list", self.read(items, path=f"{path}.items", name=f"{name}.item", depth=depth + 1)
        )

    def _object(self, said: dict[str, Any], path: str, name: str, depth: int) -> Type:
        others = said.get("additionalProperties", True)
        properties, required = said.get("properties", {}), said.get("required", [])
        if not isinstance(properties, dict) or not isinstance(required, list):
            message = "properties is an object, required an array"
            raise SchemaError("SCHEMA_INVALID", message, path)
        missing = [str(each) for each in required if each not in properties]
        if missing:
            message = f"requires {missing[0][:100]!r}, which is none of its properties"
            raise SchemaError("SCHEMA_INVALID", message, path)
        if "properties" not in said:
            where = f"{path}.additionalProperties"
            value = self.read(others, path=where, name=f"{name}.value", depth=depth + 1)
            return Dict(SCALARS["str"], value)
        if said.get("additionalProperties", False) is not False:
            message = "an object with properties has no others: leave it out, or say false"
            raise SchemaError("SCHEMA_INVALID", message, f"{path}.additionalProperties")
        fields = [
            Field(
                key,
                self.read(
                    each, path=f"{path}.properties.{key}", name=f"{name}.{key}", depth=depth + 1
                ),
                key in required,
            )
            for key, each in properties.items()
        ]
        return Record("typeddict", name, tuple(fields))

    def reference(self, target: object, path: str, name: str, depth: int) -> Type:
        """Convert what `$ref` names; raises SchemaError for a recursive schema."""
        if not isinstance(target, str) or not target.startswith("#/"):
            raise SchemaError("SCHEMA_INVALID", "$ref must refer into this schema: #/$defs/…", path)
        if target in self._open:
            raise SchemaError("TYPE_RECURSIVE", f"{target[:100]} contains itself", path)
        here = self._root
        for part in target[2:].split("/"):
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(here, dict) or key not in here:
                raise SchemaError("TYPE_UNKNOWN", f"there is no {target[:100]}", path)
            here = here[key]
        self._open.append(target)
        try:
            return self.read(here, path=target, name=name, depth=depth + 1)
        finally:
            self._open.pop()

    def choices(self, members: object, path: str, name: str, depth: int) -> Type:
        """Convert `anyOf` and `oneOf` to a union."""
        if not isinstance(members, list) or not members:
            raise SchemaError("SCHEMA_INVALID", "anyOf and oneOf are arrays of schemas", path)
        return union_of(
            self.read(each, path=f"{path}[{at}]", name=name, depth=depth + 1)
            for at, each in enumerate(members)
        )


def _of(kind: str) -> frozenset[str]:
    return _KEYWORDS.get(kind, frozenset())


def _string(said: Mapping[str, Any], path: str) -> Type:
    encoding, form = said.get("contentEncoding"), said.get("format")
    if encoding is not None:
        if encoding != "base64" or form is not None:
            message = "contentEncoding is base64, without a format"
            raise SchemaError("SCHEMA_INVALID", message, path)
        return SCALARS["bytes"]
    if form is None:
        return SCALARS["str"]
    if not isinstance(form, str) or form not in _FORMATS:
        message = f"is none of {', '.join(_FORMATS)}"
        raise SchemaError("SCHEMA_INVALID", message, f"{path}.format")
    return SCALARS[_FORMATS[form]]


def _constants(values: object, path: str) -> Type:
    if not isinstance(values, list) or not values or not all(map(_is_constant, values)):
        message = "enum and const have text, integers, true, false and null"
        raise SchemaError("SCHEMA_INVALID", message, path)
    return NONE if values == [None] else Literal(tuple(values))


def _is_constant(value: object) -> bool:
    return value is None or isinstance(value, str | int)


def _only(said: Mapping[str, Any], keywords: set[str], path: str) -> None:
    other = next((key for key in said if key not in keywords), None)
    if other is not None:
        message = f"the keyword {other[:100]!r} would not be enforced here"
        raise SchemaError("SCHEMA_KEYWORD_REFUSED", message, path)


# Keywords that determine a schema on their own.
_WHOLE: Final[Mapping[str, Callable[[_Reader, Any, str, str, int], Type]]] = {
    "$ref": _Reader.reference,
    "enum": lambda _, values, path, _name, _depth: _constants(values, f"{path}.enum"),
    "const": lambda _, value, path, _name, _depth: _constants([value], f"{path}.const"),
    "anyOf": lambda reader, members, path, name, depth: reader.choices(
        members, f"{path}.anyOf", name, depth
    ),
    "oneOf": lambda reader, members, path, name, depth: reader.choices(
        members, f"{path}.oneOf", name, depth
    ),
}
