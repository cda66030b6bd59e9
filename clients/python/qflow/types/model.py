"""Types as immutable values, which are equal if written alike."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeAlias

# Values of literals and enum members; literals have no floats.
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
# Types whose values are transferred as files, referred to by id.
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
    """A tuple with a type for each position."""

    items: tuple[Type, ...]


@dataclass(frozen=True, slots=True)
class VariadicTuple:
    """A tuple of any length with one item type."""

    item: Type


@dataclass(frozen=True, slots=True)
class Dict:
    """A mapping; keys are encoded as texts."""

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


# The base of an enum whose members are bits, which can be combined.
FLAG: Final = "flag"


@dataclass(frozen=True, slots=True)
class Enum:
    """An enumeration: names and values of members; with the base `FLAG` also combinations."""

    name: str
    base: str
    members: tuple[tuple[str, Constant], ...] = field(compare=False)
    keys: tuple[tuple[str, tuple[str, Constant]], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        keys = tuple((name, constant_key(value)) for name, value in self.members)
        object.__setattr__(self, "keys", keys)


def is_combined(of: Enum, value: object) -> bool:
    """Return whether a value is a combination of a flag's members; 0 is one, too."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return False
    made = 0
    for _, bits in of.members:
        if isinstance(bits, int) and bits & value == bits:
            made |= bits
    return made == value


def combinations(of: Enum) -> Iterator[int]:
    """Yield the values of a flag: 0, its members and combinations of them."""
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
    """Return the scalar type with this name; raises KeyError."""
    return SCALARS[name]


def constant_key(value: Constant) -> tuple[str, Constant]:
    """Return the identity of a constant: the name of its Python type, and the value."""
    return type(value).__name__, value


def union_of(members: Iterable[Type]) -> Type:
    """Return the union: flat, without duplicates, or the only member."""
    flat: dict[Type, None] = {}
    for member in members:
        flat.update(dict.fromkeys(member.any_of if isinstance(member, Union) else (member,)))
    if len(flat) == 1:
        return next(iter(flat))
    return Union(tuple(flat))


def parts(of: Type) -> Iterator[Type]:
    """Yield the direct parts of a type."""
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
    """Yield a type and all its parts."""
    stack = [of]
    while stack:
        here = stack.pop()
        yield here
        stack.extend(parts(here))


def contains_named(of: Type) -> str | None:
    """Return the name of the first opaque type within a type, or None."""
    return next((here.name for here in walk(of) if isinstance(here, Named)), None)
