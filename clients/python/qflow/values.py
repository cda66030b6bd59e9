"""Conversion between Python values and JSON texts, by declared type.

This is the code that runs beside user code in a sandbox, so that values are converted alike.
"""

from __future__ import annotations

import json
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from qflow import _agent
from qflow.exceptions import QflowError
from qflow.types import (
    ANY,
    Collection,
    Dict,
    Enum,
    Field,
    Record,
    Tuple,
    Type,
    Union,
    VariadicTuple,
    to_json,
    union_of,
)
from qflow.types.model import CARRIED

Classes = Mapping[str, Any]
_NO_CLASSES: Final[Classes] = {}


class ValueTypeError(QflowError):
    """A value does not fit its declared type; the message says where, and what was expected."""


class _Codecs(_agent.Codecs):
    """Finds classes by their qualified names; files are represented by references."""

    # For unions and sets: to the agent, the value of a file is the file.
    carried: tuple[str, ...] = ()

    def find(self, name: str) -> Any:
        return self.namespace[name]


class _LocalCodecs(_Codecs):
    """Passes values that would be transferred as files unchanged, within one process."""


def _reference(_self: _Codecs, kind: Mapping[str, Any], _depth: int) -> Callable[[Any], Any]:
    def same(value: Any) -> Any:
        if isinstance(value, dict) and value.keys() == {"$file"}:
            return value
        raise _agent.Mismatch(
            f"a {kind['t']} travels as a file: bring it with client.files.upload and give "
            "{'$file': its id}"
        )

    return same


def _as_it_is(_self: _Codecs, _kind: Mapping[str, Any], _depth: int) -> Callable[[Any], Any]:
    return lambda value: value


for _name in CARRIED:
    for _way in ("decode", "encode"):
        setattr(_Codecs, f"_{_way}_{_name}", _reference)
        setattr(_LocalCodecs, f"_{_way}_{_name}", _as_it_is)


def encode(value: Any, of: Type, *, name: str, classes: Classes = _NO_CLASSES) -> str:
    """Return a value as JSON text; `name` is its name in errors."""
    return dump(to_plain(value, of, name=name, classes=classes))


def decode(text: str, of: Type, *, name: str, classes: Classes = _NO_CLASSES) -> Any:
    """Return the value of a JSON text; records of unknown classes become dicts."""
    return from_plain(parse(text), of, name=name, classes=classes)


def to_plain(value: Any, of: Type, *, name: str, classes: Classes = _NO_CLASSES) -> Any:
    """Return the JSON value of a value."""
    return Codec(of, classes).to_plain(value, name=name)


def from_plain(plain: Any, of: Type, *, name: str, classes: Classes = _NO_CLASSES) -> Any:
    """Return the value of a JSON value."""
    return Codec(of, classes).from_plain(plain, name=name)


class Codec:
    """Encodes and decodes values of one type; compiled on first use."""

    __slots__ = ("_codecs", "_decode", "_encode", "_form")

    def __init__(self, of: Type, classes: Classes = _NO_CLASSES, *, is_local: bool = False) -> None:
        self._form = to_json(_known(of, classes))
        self._codecs = (_LocalCodecs if is_local else _Codecs)(classes)
        self._encode: Callable[[Any], Any] | None = None
        self._decode: Callable[[Any], Any] | None = None

    def to_plain(self, value: Any, *, name: str) -> Any:
        """Return the JSON value of a value; `name` is its name in errors."""
        try:
            if self._encode is None:
                self._encode = self._codecs.encoder(self._form)
            return self._encode(value)
        except _agent.Mismatch as problem:
            raise ValueTypeError(problem.text(name)) from None
        except (ValueError, TypeError, RecursionError, OverflowError):
            raise ValueTypeError(f"{name}: cannot be written as JSON") from None

    def from_plain(self, plain: Any, *, name: str) -> Any:
        """Return the value of a JSON value."""
        try:
            if self._decode is None:
                self._decode = self._codecs.decoder(self._form)
            return self._decode(plain)
        except _agent.Mismatch as problem:
            raise ValueTypeError(problem.text(name)) from None
        except (ValueError, RecursionError):
            raise ValueTypeError(f"{name}: is not a value of its type") from None


def convert(plain: Any, method: str, *, name: str) -> Any:
    """Apply a conversion of an edge to a JSON value, as a run does."""
    try:
        return _agent.CONVERSIONS[method](plain)
    except _agent.Mismatch as problem:
        raise ValueTypeError(problem.text(name)) from None


def parse(text: str) -> Any:
    """Parse a JSON text exactly: integers of any size, no NaN."""
    return _agent.parse(text)


def dump(plain: Any) -> str:
    """Return a JSON value as text, exactly: integers of any size, texts unescaped."""
    return json.dumps(plain, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _known(of: Type, classes: Classes) -> Type:  # noqa: PLR0911  # one table
    """Return the type with records and enums of unknown classes replaced by plain data."""
    match of:
        case Record(kind=kind, name=name, fields=fields):
            known = [Field(each.name, _known(each.type, classes), each.required) for each in fields]
            kept = kind if kind == "typeddict" or name in classes else "typeddict"
            return Record(kept, name, tuple(known))
        case Enum(name=name):
            return of if name in classes else ANY
        case Collection(kind=kind, item=item):
            return Collection(kind, _known(item, classes))
        case VariadicTuple(item=item):
            return VariadicTuple(_known(item, classes))
        case Tuple(items=items):
            return Tuple(tuple(_known(each, classes) for each in items))
        case Dict(key=key, value=value):
            return Dict(_known(key, classes), _known(value, classes))
        case Union(any_of=members):
            return union_of(_known(each, classes) for each in members)
        case _:
            return of


def classes_in(hint: Any) -> dict[str, Any]:
    """Return the classes in an annotation, by their names in types."""
    return dict(_classes(hint, set()))


def _classes(hint: Any, seen: set[int]) -> Iterator[tuple[str, Any]]:
    if id(hint) in seen:
        return
    seen.add(id(hint))
    for each in typing.get_args(hint):
        yield from _classes(each, seen)
    if isinstance(hint, type) and not hint.__module__.startswith(("builtins", "typing")):
        yield hint.__qualname__, hint
        try:
            inner = typing.get_type_hints(hint, include_extras=True)
        except Exception:  # noqa: BLE001  # annotations may raise anything
            return
        for each in inner.values():
            yield from _classes(each, seen)
