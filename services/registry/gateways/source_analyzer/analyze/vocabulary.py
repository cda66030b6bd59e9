"""The names of types in typing and related modules, with their structural forms."""

from __future__ import annotations

import re

NAME = re.compile(r"[^\W\d]\w*\Z")


SCALARS = {
    "builtins.int": "int",
    "builtins.float": "float",
    "builtins.bool": "bool",
    "builtins.str": "str",
    "builtins.bytes": "bytes",
    "builtins.complex": "complex",
    "builtins.object": "any",
    "typing.Any": "any",
    "typing.AnyStr": "any",
    "typing.Text": "str",
    "typing.LiteralString": "str",
    "datetime.datetime": "datetime",
    "datetime.date": "date",
    "datetime.time": "time",
    "datetime.timedelta": "timedelta",
    "decimal.Decimal": "decimal",
    "uuid.UUID": "uuid",
    "pathlib.Path": "file",
    "pathlib.PurePath": "file",
    "pathlib.PosixPath": "file",
    "pathlib.PurePosixPath": "file",
    "os.PathLike": "file",
    "typing.BinaryIO": "file",
    "io.BufferedReader": "file",
    "io.BufferedIOBase": "file",
    "numpy.ndarray": "ndarray",
    "numpy.typing.NDArray": "ndarray",
    "pyarrow.Table": "arrow",
    "pandas.DataFrame": "pandas",
    "polars.DataFrame": "polars",
}
# Foreign types whose arguments do not matter for carrying their values.
OPAQUE_PARTS = {
    "os.PathLike": "file",
    "numpy.ndarray": "ndarray",
    "numpy.typing.NDArray": "ndarray",
}
LISTS = {
    "builtins.list",
    "typing.List",
    "typing.Sequence",
    "typing.MutableSequence",
    "typing.Iterable",
    "typing.Collection",
    "typing.Container",
    "typing.Reversible",
    "collections.abc.Sequence",
    "collections.abc.MutableSequence",
    "collections.abc.Iterable",
    "collections.abc.Collection",
    "collections.abc.Container",
    "collections.abc.Reversible",
}
SETS = {
    "builtins.set",
    "typing.Set",
    "typing.MutableSet",
    "collections.abc.MutableSet",
}
FROZENSETS = {
    "builtins.frozenset",
    "typing.FrozenSet",
    "typing.AbstractSet",
    "collections.abc.Set",
}
DICTS = {
    "builtins.dict",
    "typing.Dict",
    "typing.Mapping",
    "typing.MutableMapping",
    "collections.abc.Mapping",
    "collections.abc.MutableMapping",
}
TUPLES = {"builtins.tuple", "typing.Tuple"}
# Types whose values arrive as a plainer type, with a warning, since their methods are missing.
APPROXIMATED = {
    "collections.OrderedDict": "dict",
    "collections.defaultdict": "dict",
    "typing.OrderedDict": "dict",
    "typing.DefaultDict": "dict",
    "collections.Counter": "counter",
    "typing.Counter": "counter",
    "collections.deque": "list",
    "typing.Deque": "list",
    "builtins.bytearray": "bytes",
    "builtins.memoryview": "bytes",
}
# Modules whose star imports are resolved: they come with Python, and importing them is safe.
STAR_MODULES = (
    "typing",
    "datetime",
    "decimal",
    "dataclasses",
    "enum",
    "uuid",
    "pathlib",
    "collections",
    "collections.abc",
)
WRAPPERS = {
    "typing.Final",
    "typing.ClassVar",
    "typing.Required",
    "typing.NotRequired",
    "typing.ReadOnly",
    "dataclasses.InitVar",
}
NEVER_EMPTY = WRAPPERS | {
    "typing.Optional",
    "typing.Union",
    "typing.Annotated",
    "typing.Literal",
}
GENERIC = {"typing.Generic", "typing.Protocol"}
NOTHING = {"typing.NoReturn", "typing.Never"}
ENUM_BASES = {
    "enum.Enum": "",
    "enum.IntEnum": "int",
    "enum.StrEnum": "str",
    "enum.IntFlag": "int",
    "enum.Flag": "int",
}
ENUM_MIXINS = {"builtins.str": "str", "builtins.int": "int", "builtins.float": "float"}
PLAIN = (str, bool, int, float, type(None))
OTHER_MIXINS = {"builtins." + name for name in ("bytes", "complex", "tuple", "list", "dict")}
BUILTINS = set(dir(__builtins__) if not isinstance(__builtins__, dict) else __builtins__)
HARMLESS_DECORATORS = {
    "functools.cache",
    "functools.lru_cache",
    "typing.final",
    "typing.no_type_check",
}
