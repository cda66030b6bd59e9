"""Types of annotations, evaluated by Python itself.

The registry derives the same types from a node's source, for every version of Python. This is for
use where the author is: local runs, and the inputs of workflows.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime as dt
import decimal
import enum
import inspect
import io
import os
import pathlib
import types
import typing
import uuid
from collections import abc
from typing import Any, Final

from qflow.types import (
    ANY,
    SCALARS,
    Collection,
    Dict,
    Enum,
    Field,
    Literal,
    Named,
    Record,
    Tuple,
    Type,
    VariadicTuple,
    union_of,
)
from qflow.types.model import FLAG

_SCALARS: Final[dict[Any, str]] = {
    **{each: each.__name__ for each in (int, float, bool, str, bytes, complex)},
    object: "any",
    Any: "any",
    **dict.fromkeys((None, type(None), typing.NoReturn, typing.Never), "none"),
    typing.LiteralString: "str",
    dt.datetime: "datetime",
    dt.date: "date",
    dt.time: "time",
    dt.timedelta: "timedelta",
    decimal.Decimal: "decimal",
    uuid.UUID: "uuid",
    **dict.fromkeys((pathlib.Path, pathlib.PurePath, pathlib.PosixPath, os.PathLike), "file"),
    **dict.fromkeys((pathlib.PurePosixPath, typing.BinaryIO, io.BufferedReader), "file"),
    io.BufferedIOBase: "file",
    bytearray: "bytes",
    memoryview: "bytes",
}
# By name, so that none of them has to be imported.
_TABLES: Final = {
    "numpy.ndarray": "ndarray",
    "pandas.DataFrame": "pandas",
    "pandas.core.frame.DataFrame": "pandas",
    "polars.dataframe.frame.DataFrame": "polars",
    "pyarrow.lib.Table": "arrow",
}
_COLLECTIONS: Final[dict[Any, str]] = {
    **dict.fromkeys(
        (list, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection), "list"
    ),
    **dict.fromkeys((abc.Container, abc.Reversible, collections.deque), "list"),
    **dict.fromkeys((set, abc.MutableSet), "set"),
    **dict.fromkeys((frozenset, abc.Set), "frozenset"),
}
_DICTS: Final = (
    dict,
    abc.Mapping,
    abc.MutableMapping,
    collections.OrderedDict,
    collections.defaultdict,
)
_CONSTANTS: Final = (str, int, float, bool, type(None))


def type_of(hint: Any) -> Type:  # noqa: PLR0911  # one table
    """Return the type of an evaluated annotation; classes are converted by their shape."""
    if hint in (Ellipsis, inspect.Parameter.empty):
        return ANY
    if isinstance(hint, typing.TypeVar):
        if hint.__constraints__:
            return union_of(map(type_of, hint.__constraints__))
        return ANY if hint.__bound__ is None else type_of(hint.__bound__)
    if isinstance(hint, typing.NewType):
        return type_of(hint.__supertype__)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated and "pickle" in arguments[1:]:
        return SCALARS["pickle"]
    if origin in (typing.Annotated, typing.Required, typing.NotRequired):
        return type_of(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return union_of(map(type_of, arguments))
    if origin is typing.Literal:
        return _literal(arguments)
    return _shaped(origin or hint, arguments, bare=origin is None or hint is origin)


def _literal(values: tuple[Any, ...]) -> Type:
    plain = tuple(
        each
        for each in values
        if isinstance(each, str | int | bool | None) and not isinstance(each, enum.Enum)
    )
    others = [type_of(type(each)) for each in values if each not in plain]
    return union_of([*([Literal(plain)] if plain else []), *others])


def _shaped(origin: Any, arguments: tuple[Any, ...], *, bare: bool) -> Type:  # noqa: PLR0911  # one table
    if origin in _SCALARS:
        return SCALARS[_SCALARS[origin]]
    parts = [type_of(each) for each in arguments if not isinstance(each, list)]
    if origin is tuple:
        if not arguments:
            return VariadicTuple(ANY) if bare else Tuple(())
        return VariadicTuple(parts[0]) if arguments[-1] is Ellipsis else Tuple(tuple(parts))
    if origin in _COLLECTIONS:
        return Collection(_COLLECTIONS[origin], parts[0] if parts else ANY)
    if origin is collections.Counter:
        return Dict(parts[0] if parts else ANY, SCALARS["int"])
    if origin in _DICTS:
        return Dict(*parts) if parts else Dict(ANY, ANY)
    return _class(origin)


def _class(of: Any) -> Type:
    name = f"{getattr(of, '__module__', '')}.{getattr(of, '__qualname__', of)}"
    if name in _TABLES:
        return SCALARS[_TABLES[name]]
    if not inspect.isclass(of):
        return Named(name)
    if issubclass(of, enum.Enum):
        pairs = tuple((key, each.value) for key, each in of.__members__.items())
        if pairs and all(type(value) in _CONSTANTS for _, value in pairs):
            return Enum(of.__qualname__, _enum_base(of, pairs), pairs)
        return Named(name)
    kind = _record_kind(of)
    if kind is None:
        return Named(name)
    return Record(kind, of.__qualname__, tuple(_fields(of, kind)))


def _enum_base(of: type[enum.Enum], pairs: tuple[tuple[str, Any], ...]) -> str:
    """Return the kind of an enum's members, as the registry derives it from the source."""
    if issubclass(of, enum.Flag):
        return FLAG
    mixin = next((each.__name__ for each in (str, int, float) if issubclass(of, each)), "")
    kinds = {type(value).__name__ for _, value in pairs}
    return mixin or (kinds.pop() if len(kinds) == 1 else "object")


def _record_kind(of: Any) -> str | None:
    if typing.is_typeddict(of):
        return "typeddict"
    if issubclass(of, tuple) and hasattr(of, "_fields"):
        return "namedtuple"
    if "__dataclass_fields__" in vars(of):
        return "dataclass"
    return "pydantic" if hasattr(of, "model_fields") else None


def _fields(of: Any, kind: str) -> abc.Iterator[Field]:
    hints = typing.get_type_hints(of, include_extras=True)
    for name, hint in hints.items():
        if kind == "typeddict":
            yield Field(name, type_of(hint), name in of.__required_keys__)
        elif kind == "namedtuple":
            yield Field(name, type_of(hint), name not in of._field_defaults)
        elif kind == "pydantic":
            if name in of.model_fields:
                yield Field(name, type_of(hint), of.model_fields[name].is_required())
        else:
            field = of.__dataclass_fields__.get(name)
            if field is not None and field.init:
                missing = dataclasses.MISSING
                given = field.default is not missing or field.default_factory is not missing
                yield Field(name, type_of(hint), not given)
