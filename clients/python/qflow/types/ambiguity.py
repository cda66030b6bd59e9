"""Finds unions whose values may be decoded as another member, as JSON does not say which it was.

This follows the runner's agent, which tries members in the order of `qflow.types.order`.
"""

# Each function here is one table over the closed set of types.
# ruff: noqa: C901, PLR0911

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, TypeAlias

from qflow.types.check import check_value, is_key
from qflow.types.model import (
    ANY,
    FLAG,
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
    combinations,
    constant_key,
    parts,
    walk,
)
from qflow.types.order import by_precision, keys_by_precision
from qflow.types.values import dump_exact

# Limits the cost of a mere hint: each part of a member is compared with those of all others.
_PARTS_COMPARED_MAX: Final = 200
_CONSTANTS_COMPARED_MAX: Final = 50
_TEXTS: Final = frozenset({"bytes", "decimal", "uuid", "datetime", "date", "time"})
_AS_IT_IS: Final = frozenset({"none", "bool", "int", "str", "any"})
# By scalar: others that can decode some of its values.
_ALSO_READ: Final[Mapping[str, frozenset[str]]] = {
    **dict.fromkeys(_TEXTS, frozenset({"str"})),
    "str": _TEXTS,
    "bytes": frozenset({"str", "decimal"}),
    "decimal": frozenset({"str", "bytes"}),
    "int": frozenset({"float", "timedelta"}),
    "float": frozenset({"timedelta"}),
    "timedelta": frozenset({"int", "float"}),
}
# The same for keys, where numbers, `true` and `null` are texts, too.
_KEYS_ALSO_READ: Final[Mapping[str, frozenset[str]]] = {
    "bytes": frozenset({"decimal", "int", "float", "timedelta", "bool", "none"}),
    "decimal": frozenset({"bytes", "int", "float", "timedelta"}),
    "int": frozenset({"bytes", "decimal", "float", "timedelta"}),
    "float": frozenset({"bytes", "decimal", "timedelta"}),
    "timedelta": frozenset({"bytes", "decimal", "int", "float"}),
    "bool": frozenset({"bytes"}),
    "none": frozenset({"bytes"}),
}
_Array: TypeAlias = "Tuple | VariadicTuple"


@dataclass(frozen=True, slots=True)
class Ambiguity:
    """A union in which a value of one member may be decoded as another."""

    union: Type
    written: Type
    read: Type


def ambiguous(of: Type) -> Ambiguity | None:
    """Return a union within a type whose members share an encoding, or None.

    Very large types are not searched.
    """
    if len(list(islice(walk(of), _PARTS_COMPARED_MAX + 1))) > _PARTS_COMPARED_MAX:
        return None
    stack = [(of, False)]
    while stack:
        here, as_key = stack.pop()
        found = _of_union(here, as_key=as_key)
        if found is not None:
            return found
        if isinstance(here, Dict):
            stack += [(here.value, False), (here.key, True)]
        else:
            stack += [(part, as_key and isinstance(here, Union)) for part in parts(here)]
    return None


def _of_union(of: Type, *, as_key: bool) -> Ambiguity | None:
    members = list(_key_members(of)) if as_key else by_precision(list(_members(of)))
    confused = _keys_confused if as_key else _confused
    for at, written in enumerate(members):
        for read in members[:at]:
            if confused(written, read):
                return Ambiguity(of, written, read)
    return None


def _members(of: Type) -> Sequence[Type]:
    return of.any_of if isinstance(of, Union) else (of,)


def _key_members(of: Type) -> Iterator[Type]:
    """Yield the possible types of a key in decoding order; constants one by one."""
    for member in keys_by_precision(_members(of)):
        if isinstance(member, Literal):
            values = sorted(member.values, key=lambda value: not isinstance(value, str))
            yield from (Literal((value,)) for value in values[:_CONSTANTS_COMPARED_MAX])
        else:
            yield member


def _confused(written: Type, read: Type) -> bool:
    """Return whether a value of one type may be decoded as a different value of the other."""
    if written == read or (_as_it_is(written) and _as_it_is(read)):
        return False
    if isinstance(written, Union) or isinstance(read, Union):
        return any(_confused(w, r) for w in _members(written) for r in _members(read))
    match written, read:
        case Dict(), Dict():
            return _keys_confused(written.key, read.key) or _confused(written.value, read.value)
        case Collection(), Collection() if written.kind == read.kind:
            return _confused(written.item, read.item)
        case ((Tuple() | VariadicTuple()), (Tuple() | VariadicTuple())):
            return _shares(written, read) and any(
                _confused(*pair) for pair in _pairs(written, read)
            )
        case Record(kind="typeddict"), Record(kind="typeddict"):
            theirs = {each.name: each.type for each in read.fields}
            return _shares(written, read) and any(
                _confused(each.type, theirs[each.name])
                for each in written.fields
                if each.name in theirs
            )
        case Record(kind="typeddict"), Dict():
            return _shares(written, read) and any(
                _confused(each.type, read.value) for each in written.fields
            )
        case Dict(), Record(kind="typeddict"):
            return _shares(written, read) and any(
                _confused(written.value, each.type) for each in read.fields
            )
        case _:
            return _shares(written, read)


def _as_it_is(of: Type) -> bool:
    """Return whether values of a type are plain JSON, which all members decode alike."""
    match of:
        case Scalar(name=name):
            return name in _AS_IT_IS
        case Collection(kind="list", item=item):
            return _as_it_is(item)
        case Dict(key=key, value=value):
            return key in (SCALARS["str"], ANY) and _as_it_is(value)
        case _:
            return isinstance(of, Literal)


def _shares(written: Type, read: Type) -> bool:
    """Return whether some value of one type can be decoded as the other."""
    if isinstance(written, Named) or isinstance(read, Named):
        return False
    if isinstance(written, Union) or isinstance(read, Union):
        return any(_shares(w, r) for w in _members(written) for r in _members(read))
    if ANY in (written, read):
        return True
    constants = _constants(written) or _constants(read)
    if constants:
        return _constants_share(written, read, constants)
    arrays = _array(written), _array(read)
    if arrays[0] and arrays[1]:
        return _arrays_share(arrays[0], arrays[1])
    match written, read:
        case Scalar(), Scalar():
            return written == read or read.name in _ALSO_READ.get(written.name, ())
        case Dict(), Dict():
            return True  # the empty one
        case Record(), Dict():
            return all(
                is_key(read.key, each.name) and _shares(each.type, read.value)
                for each in written.fields
                if each.required
            )
        case Dict(), Record():
            return all(
                is_key(written.key, each.name) and _shares(written.value, each.type)
                for each in read.fields
                if each.required
            )
        case Record(), Record():
            return _records_share(written.fields, read.fields)
        case _:
            return False


def _constants_share(written: Type, read: Type, constants: list[Constant]) -> bool:
    theirs = _constants(read)
    if _constants(written) and theirs:
        return not {*map(constant_key, constants)}.isdisjoint(map(constant_key, theirs))
    return (isinstance(written, Scalar) or isinstance(read, Scalar)) and any(
        _is_written(written, value) and check_value(read, value) is None for value in constants
    )


def _is_written(of: Type, value: Constant) -> bool:
    """Return whether a type encodes values like this; `float` decodes integers but writes none."""
    if of == SCALARS["float"] and not isinstance(value, float):
        return False
    return check_value(of, value) is None


def _constants(of: Type) -> list[Constant]:
    match of:
        case Literal(values=values):
            return list(values[:_CONSTANTS_COMPARED_MAX])
        case Enum(base=base) if base == FLAG:
            return list(islice(combinations(of), _CONSTANTS_COMPARED_MAX))
        case Enum(members=pairs):
            return [value for _, value in islice(pairs, _CONSTANTS_COMPARED_MAX)]
        case _:
            return []


def _array(of: Type) -> _Array | None:
    match of:
        case Tuple() | VariadicTuple():
            return of
        case Collection(item=item):
            return VariadicTuple(item)
        case Scalar(name="complex"):
            return Tuple((SCALARS["float"], SCALARS["float"]))
        case _:
            return None


def _arrays_share(written: _Array, read: _Array) -> bool:
    if isinstance(written, Tuple) and isinstance(read, Tuple):
        if len(written.items) != len(read.items):
            return False
    elif isinstance(written, VariadicTuple) and isinstance(read, VariadicTuple):
        return True  # the empty one
    return all(_shares(*pair) for pair in _pairs(written, read))


def _pairs(written: _Array, read: _Array) -> Iterator[tuple[Type, Type]]:
    match written, read:
        case Tuple(items=theirs), Tuple(items=ours):
            yield from zip(theirs, ours, strict=False)
        case Tuple(items=items), VariadicTuple(item=item):
            yield from ((each, item) for each in items)
        case VariadicTuple(item=item), Tuple(items=items):
            yield from ((item, each) for each in items)
        case VariadicTuple(item=first), VariadicTuple(item=second):
            yield first, second


def _records_share(written: Sequence[Field], read: Sequence[Field]) -> bool:
    ours = {each.name: each for each in written}
    theirs = {each.name: each for each in read}
    if any(each.required and each.name not in ours for each in read):
        return False
    return all(
        each.name in theirs and _shares(each.type, theirs[each.name].type)
        for each in written
        if each.required
    )


def _keys_confused(written: Type, read: Type) -> bool:
    """Return whether the text of a key of one type is a different key of the other."""
    if len(pairs := _key_pairs(written, read)) != 1:
        return any(_keys_confused(*pair) for pair in pairs)
    written, read = pairs[0]
    text = (SCALARS["str"], ANY)
    if written == read or (written in text and read in text):
        return False
    constants = _constants(written) or _constants(read)
    if constants:
        return _constant_keys_confused(written, read, constants)
    if written in text or read in text:
        return True
    if isinstance(written, Scalar) and isinstance(read, Scalar):
        return read.name in _KEYS_ALSO_READ.get(written.name, ())
    return _confused(written, read)


def _key_pairs(written: Type, read: Type) -> list[tuple[Type, Type]]:
    return [(w, r) for w in _key_members(written) for r in _key_members(read)]


def _constant_keys_confused(written: Type, read: Type, constants: list[Constant]) -> bool:
    theirs = _constants(read)
    if _constants(written) and theirs:
        ours = {_key_text(value): constant_key(value) for value in constants}
        return any(
            ours.get(_key_text(value), constant_key(value)) != constant_key(value)
            or (_key_text(value) in ours and not (_as_it_is(written) and _as_it_is(read)))
            for value in theirs
        )
    other = read if _constants(written) else written
    return isinstance(other, Scalar) and any(
        is_key(other, _key_text(value))
        and not (other is written and other == SCALARS["float"] and not isinstance(value, float))
        and not (_as_it_is(written) and _as_it_is(read) and _is_key_value(other, value))
        for value in constants
    )


def _is_key_value(of: Scalar, value: Constant) -> bool:
    return isinstance(value, str) if of == ANY else check_value(of, value) is None


def _key_text(value: Constant) -> str:
    return value if isinstance(value, str) else dump_exact(value)
