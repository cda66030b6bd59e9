"""Read enums: their members, numbered and converted as Python does."""

from __future__ import annotations

import ast

from .report import Refused
from .scope import BLOCKS, targets_of
from .values import plain, storable
from .vocabulary import ENUM_BASES, ENUM_MIXINS, OTHER_MIXINS, PLAIN

MEMBERS_MAX = 1_000


def read_enum(types, lineage, name, bases, node):
    """Return the form of an enum class, the last one of its lineage."""
    members = Members(bases, _defines(lineage, "_generate_next_value_"))
    kept = any(each.arg == "boundary" for here in lineage for each in here.keywords)
    if kept or _defines(lineage, "__new__") or bases & OTHER_MIXINS:
        return types.opaque(name, node)  # such values cannot be known without running code
    for statement in lineage[-1].body:
        if isinstance(statement, BLOCKS):
            return types.opaque(name, node)
        for target, value in targets_of(statement):
            if not _add_member(types, members, target, value):
                return types.opaque(name, node)
    return _form(types, name, members, node)


def _add_member(types, members, target, value):
    """Return whether an assignment could be read; one that makes no member is skipped."""
    if not isinstance(target, ast.Name) or target.id == "_ignore_":
        return False
    if target.id[0] == target.id[-1] == "_":
        return True
    if target.id.startswith("__"):
        return False  # before Python 3.11 a member with a mangled name, since then none
    if isinstance(value, ast.Call) and types.scope.dotted(value.func) == "enum.auto":
        return members.number(target.id)
    return members.add(target.id, plain(value))


def read_enum_call(types, name, base, call, node):
    """Return the form of `Enum("Color", "RED BLUE")`."""
    members, shape = Members({base}, False), plain(call.args[1])
    if isinstance(shape, str):
        shape = shape.replace(",", " ").split()
    sound = not call.keywords and isinstance(shape, (list, tuple, dict))
    for each in shape if sound else ():
        sound = sound and isinstance(each, str)
        if sound:
            numbered = not isinstance(shape, dict)
            sound = members.number(each) if numbered else members.add(each, shape[each])
    return _form(types, name, members, node) if sound else types.opaque(name, node)


def _form(types, name, members, node):
    found, base = members.found, members.base
    if not found or len(name) > 255:
        return types.opaque(name, node)
    types.count_parts(len(found))
    if members.flags and all(value >= 0 for value in found.values()):
        base = "flag"
    if not base:
        kinds = {type(value).__name__ for value in found.values()}
        base = kinds.pop() if len(kinds) == 1 else "object"
    return {"t": "enum", "name": name, "base": base, "members": found}


class Members:
    """Collects the members of an enum."""

    def __init__(self, bases, own_numbers):
        base = next((ENUM_BASES[each] for each in sorted(bases) if ENUM_BASES.get(each)), "")
        mixins = [ENUM_MIXINS[each] for each in sorted(bases & set(ENUM_MIXINS))]
        self.base = base or (mixins[0] if mixins else "")
        self.flags = bool(bases & {"enum.Flag", "enum.IntFlag"})
        self.texts = "enum.StrEnum" in bases
        self.own_numbers = own_numbers
        self.written = []  # the values before conversion, from which `auto()` counts on
        self.found = {}
        self.first = {}

    def number(self, name):
        """Add the value of `auto()`; returns whether it is known."""
        if self.own_numbers:
            return False
        if self.texts:
            return self.add(name, name.lower())
        if not all(isinstance(each, (int, float)) for each in self.written):
            return False
        return self.add(name, self._next())

    def _next(self):
        # Python's own rule, from the last or the largest value: 3.11.2 and 3.11.7 differ.
        import enum

        numbered = enum.Flag if self.flags else enum.Enum
        return numbered._generate_next_value_("", 1, len(self.written), self.written[:])

    def add(self, name, value):
        """Add a value as written; returns whether the member's value is known."""
        wanted = (int,) if self.flags else (str,) if self.texts else PLAIN
        convert = {"str": str, "int": int, "float": float}.get(self.base)
        # Parsing a number from a long text takes quadratic time.
        too_long = convert in (int, float) and isinstance(value, str) and len(value) > 100
        if too_long or type(value) not in wanted or len(self.found) == MEMBERS_MAX:
            return False
        self.written.append(value)
        try:
            made = storable(convert(value) if convert else value, None)
            # Equal values are one member, with the value of the first: `1`, not `1.0`.
            self.found[name] = self.first.setdefault(made, made)
        except (ValueError, TypeError, OverflowError, Refused):
            return False
        return True


def _defines(classes, name):
    return any(getattr(each, "name", "") == name for here in classes for each in here.body)
