"""What Python itself makes of a function's annotations: the judge of what was read from its source.

Everything here is asked of the imported module, nothing of its text.
"""

from __future__ import annotations

import ast
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import importlib
import inspect
import io
import os
import pathlib
import types
import typing
import uuid
from collections import abc
from typing import Any

import typing_extensions
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
    Union,
    VariadicTuple,
    union_of,
)

_SCALARS: dict[Any, str] = {
    **{each: each.__name__ for each in (int, float, bool, str, bytes, complex)},
    object: "any",
    Any: "any",
    typing.AnyStr: "any",
    **dict.fromkeys((typing_extensions.Any, typing_extensions.AnyStr), "any"),
    **dict.fromkeys((None, type(None), typing.NoReturn, typing.Never), "none"),
    **dict.fromkeys((typing.LiteralString, typing_extensions.LiteralString), "str"),
    dt.datetime: "datetime",
    dt.date: "date",
    dt.time: "time",
    dt.timedelta: "timedelta",
    decimal.Decimal: "decimal",
    uuid.UUID: "uuid",
    **dict.fromkeys((pathlib.Path, pathlib.PurePath, pathlib.PosixPath, os.PathLike), "file"),
    pathlib.PurePosixPath: "file",
    **{
        getattr(importlib.import_module(module), name): tag
        for module, name, tag in (
            ("numpy", "ndarray", "ndarray"),
            ("pandas", "DataFrame", "pandas"),
            ("polars", "DataFrame", "polars"),
            ("pyarrow", "Table", "arrow"),
        )
    },
    **dict.fromkeys((typing.BinaryIO, io.BufferedReader, io.BufferedIOBase), "file"),
    bytearray: "bytes",
    memoryview: "bytes",
}
_COLLECTIONS: dict[Any, str] = {
    **dict.fromkeys(
        (list, abc.Sequence, abc.MutableSequence, abc.Iterable, abc.Collection), "list"
    ),
    **dict.fromkeys((abc.Container, abc.Reversible, collections.deque), "list"),
    **dict.fromkeys((set, abc.MutableSet), "set"),
    **dict.fromkeys((frozenset, abc.Set), "frozenset"),
}
_DICTS = (dict, abc.Mapping, abc.MutableMapping, collections.OrderedDict, collections.defaultdict)
_ENUM_VALUES = (str, int, float, bool, type(None))


class Names:
    """The names of a module as annotations may use them, those for type checkers too."""

    def __init__(self, module: types.ModuleType, tree: ast.Module) -> None:
        self.module = module
        self.known = {**vars(importlib.import_module("builtins")), **vars(module)}
        for statement in tree.body:
            if isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
                for inner in statement.body:
                    self._import(inner)

    def _import(self, statement: ast.stmt) -> None:
        """Bind what a statement imports, as far as it is installed."""
        if not isinstance(statement, ast.Import | ast.ImportFrom):
            return
        spec = self.module.__spec__
        scope: dict[str, Any] = {"__package__": spec.parent if spec else None, "__name__": "names"}
        for alias in statement.names:
            one = ast.copy_location(
                type(statement)(**{**_fields(statement), "names": [alias]}), statement
            )
            code = compile(ast.Module([one], []), "<names>", "exec")
            try:
                exec(code, scope)
            except (ImportError, AttributeError):
                continue
        self.known |= {name: each for name, each in scope.items() if not name.startswith("__")}

    def hints(self, function: Any) -> dict[str, Any] | None:
        """Evaluate the annotations of a function; None where Python cannot either."""
        try:
            return typing.get_type_hints(function, self.known, self.known, include_extras=True)
        except Exception:  # noqa: BLE001  # whatever the text of an annotation may raise
            return None

    def resolve(self, dotted: str) -> Any:
        """Find what a dotted name means in the module; `_UNRESOLVED` where that cannot be told."""
        found = self.known.get(dotted.split(".", maxsplit=1)[0], _UNRESOLVED)
        for part in dotted.split(".")[1:]:
            found = getattr(found, part, _UNRESOLVED)
        return _imported(dotted, self.module) if found is _UNRESOLVED else found


def _fields(node: ast.AST) -> dict[str, Any]:
    return dict(ast.iter_fields(node))


_UNRESOLVED: Any = type("Unresolved", (), {})()


def _imported(dotted: str, near: types.ModuleType) -> Any:
    """Import a dotted name, as it stands or from one of the packages around a module."""
    package = (near.__spec__.parent if near.__spec__ else "") or ""
    around = ["", *(package.rsplit(".", up)[0] + "." for up in range(package.count(".") + 1))]
    parts = dotted.split(".")
    for prefix in around:
        for cut in range(len(parts), 0, -1):
            try:
                found: Any = importlib.import_module(prefix + ".".join(parts[:cut]))
            except (ImportError, ValueError):
                continue
            for part in parts[cut:]:
                found = getattr(found, part, _UNRESOLVED)
            if found is not _UNRESOLVED:
                return found
    return _UNRESOLVED


def type_of(hint: Any, module: str) -> Type:  # noqa: PLR0911  # one table
    """Give the type that an evaluated annotation stands for, seen from a module.

    Classes of the module itself are read by their shape; those of others are names.
    """
    if hint in (Ellipsis, inspect.Parameter.empty):
        return ANY
    if _hashable(hint) and hint in _SCALARS:
        return SCALARS[_SCALARS[hint]]
    if isinstance(hint, typing.ForwardRef | str):
        return Named("unresolved")
    if isinstance(hint, typing.TypeVar):
        if hint.__constraints__:
            return union_of(type_of(each, module) for each in hint.__constraints__)
        return ANY if hint.__bound__ is None else type_of(hint.__bound__, module)
    if isinstance(hint, typing.NewType):
        return type_of(hint.__supertype__, module)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return type_of(arguments[0], module)
    if origin in (typing.Union, types.UnionType):
        return union_of(type_of(each, module) for each in arguments)
    if origin in (typing.Literal, typing_extensions.Literal):
        return _literal(arguments, module)
    return _shaped(origin or hint, arguments, module, bare=origin is None or hint is origin)


def _hashable(hint: Any) -> bool:
    try:
        hash(hint)
    except TypeError:
        return False
    return True


def _literal(values: tuple[Any, ...], module: str) -> Type:
    plain = [
        each
        for each in values
        if isinstance(each, str | int | bool | None) and not isinstance(each, enum.Enum)
    ]
    others: list[Type] = [
        SCALARS["bytes"] if isinstance(each, bytes) else type_of(type(each), module)
        for each in values
        if each not in plain
    ]
    return union_of([*([Literal(tuple(plain))] if plain else []), *others])


def _shaped(origin: Any, arguments: tuple[Any, ...], module: str, *, bare: bool) -> Type:  # noqa: PLR0911  # one table
    parts = [type_of(each, module) for each in arguments if not isinstance(each, list)]
    if origin in _SCALARS:
        return SCALARS[_SCALARS[origin]]
    if origin is tuple:
        if not arguments:
            return VariadicTuple(ANY) if bare else Tuple(())
        if arguments[-1] is Ellipsis:
            return VariadicTuple(parts[0])
        return Tuple(tuple(parts))
    if origin in _COLLECTIONS:
        return Collection(_COLLECTIONS[origin], parts[0] if parts else ANY)
    if origin is collections.Counter:
        return Dict(parts[0] if parts else ANY, SCALARS["int"])
    if origin in _DICTS:
        return Dict(*parts) if parts else Dict(ANY, ANY)
    if inspect.isclass(origin) and origin.__module__ == module:
        return _class(origin, module)
    return _name(origin)


def _name(of: Any) -> Named:
    name = getattr(of, "__qualname__", None) or getattr(of, "__name__", str(of))
    path = f"{getattr(of, '__module__', '')}.{name}"
    return Named(path)


def _class(of: Any, module: str) -> Type:
    if issubclass(of, enum.Enum):
        pairs = [(name, each.value) for name, each in of.__members__.items()]
        if pairs and all(type(value) in _ENUM_VALUES for _, value in pairs):
            return Enum(of.__name__, "", tuple(pairs))
        return _name(of)
    kind = _record_kind(of)
    if kind is None:
        return _name(of)
    fields = []
    for name, hint in typing.get_type_hints(of, include_extras=True).items():
        if kind == "dataclass" and name not in {each.name for each in dataclasses.fields(of)}:
            continue
        fields.append(Field(name, type_of(hint, module)))
    return Record(kind, of.__name__, tuple(fields))


def _record_kind(of: Any) -> str | None:
    if typing.is_typeddict(of):
        return "typeddict"
    if issubclass(of, tuple) and hasattr(of, "_fields"):
        return "namedtuple"
    return "dataclass" if "__dataclass_fields__" in vars(of) else None


def expanded(of: Type, names: Names) -> Type:  # noqa: PLR0911  # one table
    """Replace what the source's reader knows by name alone by what the name means."""

    def again(each: Type) -> Type:
        return expanded(each, names)

    match of:
        case Named(name=name):
            found = names.resolve(name)
            return of if found is _UNRESOLVED else type_of(found, names.module.__name__)
        case Collection(kind=kind, item=item):
            return Collection(kind, again(item))
        case VariadicTuple(item=item):
            return VariadicTuple(again(item))
        case Tuple(items=items):
            return Tuple(tuple(map(again, items)))
        case Dict(key=key, value=value):
            return Dict(again(key), again(value))
        case Union(any_of=members):
            return union_of(map(again, members))
        case _:
            return of


def alike(read: Type, meant: Type) -> bool:  # noqa: PLR0911  # one table
    """Whether two types say the same, whatever the order of a union's members."""
    match read, meant:
        case Union(any_of=ours), Union(any_of=theirs):
            return len(ours) == len(theirs) and all(
                any(alike(one, other) for other in theirs) for one in ours
            )
        case Record(kind=kind, fields=ours), Record(kind=other, fields=theirs):
            return kind == other and {each.name for each in ours} == {each.name for each in theirs}
        case Enum(members=ours), Enum(members=theirs):
            return dict(ours) == dict(theirs)
        case Tuple(items=ours), Tuple(items=theirs):
            return len(ours) == len(theirs) and all(map(alike, ours, theirs))
        case Dict(), Dict():
            return alike(read.key, meant.key) and alike(read.value, meant.value)
        case Collection(), Collection():
            return read.kind == meant.kind and alike(read.item, meant.item)
        case VariadicTuple(), VariadicTuple():
            return alike(read.item, meant.item)
        case _:
            return read == meant
