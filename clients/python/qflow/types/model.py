"""Types as frozen values: equal when they mean the same in the same words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

# A value that a literal or an enum member may have; a literal has no floats.
Constant: TypeAlias = "str | int | float | bool | None"

SCALAR_NAMES: Final = (
    "int",
    "float",
    "bool",
    "str",
    "bytes",
    "none",
    "any",
    "complex",
    "decimal",
    "datetime",
    "date",
    "time",
    "timedelta",
    "uuid",
    "file",
    "ndarray",
    "arrow",
    "pandas",
    "polars",
    "pickle",
)
# Their values travel as files: what JSON cannot carry well. Its text holds the file's id.
CARRIED: Final = SCALAR_NAMES[SCALAR_NAMES.index("file") :]
COLLECTION_KINDS: Final = ("list", "set", "frozenset")
RECORD_KINDS: Final = ("typeddict", "dataclass", "namedtuple", "pydantic")


@dataclass(frozen=True, slots=True)
class Scalar:
    """A type without parts, by its name in `SCALAR_NAMES`."""

    name: str


@dataclass(frozen=True, slots=True)
class Collection:
    """A list, set or frozenset of one item type."""

    kind: str
    item: Type


@dataclass(frozen=True, slots=True)
class Tuple:
    """A tuple with a type for each of its places."""

    items: tuple[Type, ...]


@dataclass(frozen=True, slots=True)
class VariadicTuple:
    """A tuple of any length with one item type."""

    item: Type


@dataclass(frozen=True, slots=True)
class Dict:
    """A mapping; on the wire its keys are their text."""

    key: Type
    value: Type


@dataclass(frozen=True, slots=True)
class Union:
    """One of several types; make it with `union_of`."""

    any_of: tuple[Type, ...]


@dataclass(frozen=True, slots=True)
class Literal:
    """One of a few constants; `True` is not `1` here."""

    values: tuple[Constant, ...] = field(compare=False)
    keys: tuple[tuple[str, Constant], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "keys", tuple(constant_key(value) for value in self.values))


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a record."""

    name: str
    type: Type
    required: bool = True


@dataclass(frozen=True, slots=True)
class Record:
    """A TypedDict, dataclass, NamedTuple or pydantic model by its shape."""

    kind: str
    name: str
    fields: tuple[Field, ...]


# The base of an enum whose members are bits: each combination of them is a value too.
FLAG: Final = "flag"


@dataclass(frozen=True, slots=True)
class Enum:
    """An enumeration: member names and their values; with the base `FLAG` also what they make."""

    name: str
    base: str
    members: tuple[tuple[str, Constant], ...] = field(compare=False)
    keys: tuple[tuple[str, tuple[str, Constant]], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys = tuple((name, constant_key(value)) for name, value in self.members)
        object.__setattr__(self, "keys", keys)


def is_combined(of: Enum, value: object) -> bool:
    """Whether a value is a combination of a flag's members; none of them is one too."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return False
    made = 0
    for _, bits in of.members:
        if isinstance(bits, int) and bits & value == bits:
            made |= bits
    return made == value


def combinations(of: Enum) -> Iterator[int]:
    """Give the values of a flag: its members, and what each makes with those before it."""
    seen = {0: None}
    yield 0
    for _, bits in of.members:
        if isinstance(bits, int):
            for made in [bits, *(bits | each for each in list(seen))]:
                if made not in seen:
                    seen[made] = None
                    yield made


@dataclass(frozen=True, slots=True)
class Named:
    """A type known by its name only, such as `pandas.DataFrame`; its values stay within a node."""

    name: str


Type: TypeAlias = (
    "Scalar | Collection | Tuple | VariadicTuple | Dict | Union | Literal | Record | Enum | Named"
)

SCALARS: Final = {name: Scalar(name) for name in SCALAR_NAMES}
ANY: Final = SCALARS["any"]
NONE: Final = SCALARS["none"]


def scalar(name: str) -> Scalar:
    """Return the scalar type of this name; KeyError when there is none."""
    return SCALARS[name]


def constant_key(value: Constant) -> tuple[str, Constant]:
    """Return what makes two constants the same: the Python type's name, and the value."""
    return type(value).__name__, value


def union_of(members: Iterable[Type]) -> Type:
    """Return the union: flat, without repetitions, and no union at all when one member is left."""
    flat: dict[Type, None] = {}
    for member in members:
        flat.update(dict.fromkeys(member.any_of if isinstance(member, Union) else (member,)))
    if len(flat) == 1:
        return next(iter(flat))
    return Union(tuple(flat))


def parts(of: Type) -> Iterator[Type]:
    """Give the types that a type directly consists of."""
    match of:
        case Collection(item=item) | VariadicTuple(item=item):
            yield item
        case Tuple(items=items):
            yield from items
        case Dict(key=key, value=value):
            yield key
            yield value
        case Union(any_of=members):
            yield from members
        case Record(fields=fields):
            for each in fields:
                yield each.type
        case _:
            return


def walk(of: Type) -> Iterator[Type]:
    """Give a type and all that it consists of."""
    stack = [of]
    while stack:
        here = stack.pop()
        yield here
        stack.extend(parts(here))


def contains_named(of: Type) -> str | None:
    """Return the name of the first opaque type inside of a type, or None."""
    return next((here.name for here in walk(of) if isinstance(here, Named)), None)
