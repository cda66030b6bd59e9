"""Values of unions: which member a value is written as, and decoded by."""

import sys
from _collections import deque

from .kinds import CARRIED, TEXT_KINDS, type_name
from .plain import unwrap_numpy
from .problems import Mismatch, describe, expected

ABSENT = object()
# Declared types treat `Sequence`, `Iterable` and `deque` as lists, `AbstractSet` as a frozenset.
SEQUENCES = (list, tuple, deque, range)
SETS = (set, frozenset)


def first_of(options, name):
    def decode(plain):
        for option in options:
            try:
                return option(plain)
            except Mismatch:
                continue
        raise expected(name, plain)

    return decode


def union_encoder(kind, members):
    """Encode by the matching member; if decoders are given, only so that it decodes to the same."""
    # Enums and records only accept their own values, other members also those of subclasses.
    own_first = sorted(members, key=lambda member: member[0].get("t") not in ("enum", "record"))
    read = None if members[0][2] is None else [decode for _, _, decode in members]

    def encode(value):
        first = None
        written = []
        for option, encode_member, decode in own_first:
            try:
                plain = encode_member(value)
            except Mismatch as problem:
                if first is None or problem.kind == "serialization_error":
                    first = problem
                continue
            if read is None or _shape(_attempt(read, plain)) == _shape(value):
                return plain
            written.append((plain, option, decode))
        if written:
            return _unmistaken(value, written, read, kind)
        if first is not None and first.kind == "serialization_error":
            raise first
        raise expected(type_name(kind), value)

    return encode


def _unmistaken(value, written, decoders, kind):
    """For a value of a subclass, choose an encoding that decodes to the value of its own member."""
    decoded = [_attempt([decode], plain) for plain, _, decode in written]
    own = range(len(written))
    for loose in (False, True):
        wanted = _shape(value, loose)
        same = [at for at in own if _shape(decoded[at], loose) == wanted]
        if same:
            own = same
            break
    for at in own:
        if _shape(_attempt(decoders, written[at][0])) == _shape(decoded[at]):
            return written[at][0]
    raise Mismatch(
        "in %s, this %s would be read back as %s; declare one of them"
        % (
            type_name(kind),
            type_name(written[own[0]][1]),
            describe(_attempt(decoders, written[own[0]][0])),
        ),
        "serialization_error",
    )


def _attempt(decoders, plain):
    for decode in decoders:
        try:
            return decode(plain)
        except Mismatch:
            continue
    return ABSENT


def _shape(value, loose=False):
    """Return a value's structure by classes; equal if values are written alike and of one class.

    If `loose`, a value of a subclass counts as one of the class that it is written as.
    """
    kind = type(value)
    if kind is str or value is None:
        return kind
    value = unwrap_numpy(value)
    kind = type(value)
    enum = sys.modules.get("enum")
    if enum is not None and isinstance(value, enum.Enum):
        return kind
    if loose:
        kind = next((base for base, classes in _WRITTEN_AS if isinstance(value, classes)), kind)
    if isinstance(value, dict):
        return kind, frozenset((key, _shape(key), _shape(value[key], loose)) for key in value)
    if isinstance(value, SETS):
        return kind, frozenset(_shape(item, loose) for item in value)
    if isinstance(value, SEQUENCES):
        return kind, tuple(_shape(item, loose) for item in value)
    return kind


# Integers are valid values of `float`.
_WRITTEN_AS = (
    (bool, bool),
    (float, (int, float)),
    (str, str),
    (bytes, (bytes, bytearray, memoryview)),
    (list, (list, deque, range)),
    (dict, dict),
)
_NUMBERS = frozenset((int, float))
_WRITES = {
    "none": frozenset((type(None),)),
    "bool": frozenset((bool,)),
    "int": frozenset((int,)),
    "float": frozenset((float,)),
    "timedelta": _NUMBERS,
    "str": frozenset((str,)),
    "dict": frozenset((dict,)),
    "record": frozenset((dict,)),
    **dict.fromkeys(CARRIED, frozenset((dict,))),
}
_WRITES.update(dict.fromkeys(TEXT_KINDS, _WRITES["str"]))
_WRITES.update(dict.fromkeys(("list", "tuple", "set", "frozenset", "complex"), frozenset((list,))))
_WRITES["any"] = frozenset().union(*_WRITES.values())


def _writes(kind, find):
    """Return the JSON types that values of a type are written as."""
    if kind.get("t") == "literal":
        return {type(value) for value in kind["values"]}
    if kind.get("t") == "enum":
        import enum

        cls = find(kind["name"])
        # Iteration over flags omits combined members and the empty value.
        if issubclass(cls, enum.Flag):
            return {int}
        return {type(member.value) for member in cls}
    return _WRITES.get(kind.get("t"), _WRITES["any"])


def told_apart(options, find):
    """Return whether the JSON types of members suffice to tell their values apart."""
    for at, later in enumerate(options):
        for earlier in options[:at]:
            reads = _NUMBERS if earlier.get("t") == "float" else _writes(earlier, find)
            if reads & _writes(later, find) and not (_as_it_is(earlier) and _as_it_is(later)):
                return False
    return True


def _as_it_is(kind):
    """Return whether a type is decoded as plain JSON, so that all decoders agree."""
    tag = kind.get("t")
    if tag == "list":
        return _as_it_is(kind.get("item") or {"t": "any"})
    if tag == "dict":
        key = kind.get("key") or {"t": "str"}
        return key.get("t") in ("str", "any") and _as_it_is(kind.get("value") or {"t": "any"})
    return tag in ("literal", "none", "bool", "int", "str", "any")
