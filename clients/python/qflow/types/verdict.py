"""What is known of an edge before it ever runs: the verdict on its two types.

`exact` and `widening` mean: every value of the source, as it stands on the wire, is a value of the
target. A conversion stands on the edge itself, so it changes the whole value, never a part of it.
"""

# Each function here is one table over the closed set of types.
# ruff: noqa: C901, PLR0911, PLR0912

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from qflow.types.check import check_value
from qflow.types.conversions import LOSSLESS, LOSSY, METHODS, NAMED
from qflow.types.examples import examples
from qflow.types.expression import expression
from qflow.types.model import (
    ANY,
    FLAG,
    Collection,
    Constant,
    Dict,
    Enum,
    Literal,
    Named,
    Record,
    Scalar,
    Tuple,
    Type,
    Union,
    VariadicTuple,
    constant_key,
    contains_named,
    is_combined,
    walk,
)
from qflow.types.values import dump_exact

_SHOWN_CHARS_MAX: Final = 200
_SETS: Final = frozenset({"set", "frozenset"})


class VerdictKind(StrEnum):
    """The four things that can be said of an edge."""

    EXACT = "exact"
    WIDENING = "widening"
    CONVERSION = "conversion"
    REFUTED = "refuted"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement on one edge.

    Of a refuted one, `counter_example` is the JSON text of a value that would fail, and `mended_by`
    names the conversions with any of which the edge would fit.
    """

    kind: VerdictKind
    method: str = ""
    lossless: bool = True
    reason: str = ""
    counter_example: str | None = None
    mended_by: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the edge may be stored."""
        return self.kind is not VerdictKind.REFUTED


_EXACT: Final = Verdict(VerdictKind.EXACT)
_WIDENING: Final = Verdict(VerdictKind.WIDENING)


def verdict(source: Type, target: Type, conversion: str = "") -> Verdict:
    """Judge an edge; with `conversion`, judge it with that method on it and no other.

    Without one, the first lossless method that makes the source fit is chosen.
    """
    if conversion:
        return _with_method(source, target, conversion)
    if source == target:
        return _EXACT
    if widens(source, target):
        return _WIDENING
    for method, rule in LOSSLESS.items():
        made = rule(source)
        if made is not None and (made == target or widens(made, target)):
            return Verdict(VerdictKind.CONVERSION, method)
    return _refuted(source, target)


def widens(source: Type, target: Type) -> bool:
    """Whether each value of the source is one of the target, with nothing changed on the wire."""
    if source == target:
        return True
    if isinstance(source, Union):
        return all(widens(member, target) for member in source.any_of)
    if target == ANY:
        return contains_named(source) is None
    if isinstance(target, Union):
        return any(widens(source, member) for member in target.any_of) or _splits(source, target)
    return _widens_parts(source, target)


def _splits(source: Type, target: Union) -> bool:
    """Whether the few values of a type fit a union of which no single member has them all."""
    match source:
        case Literal(values=values):
            pass
        case Scalar(name="bool"):
            values = (True, False)
        case _:
            return False
    return len(values) > 1 and all(widens(Literal((value,)), target) for value in values)


def _widens_parts(source: Type, target: Type) -> bool:
    match source, target:
        case Collection(), Collection():
            kinds = {source.kind, target.kind}
            return (
                (len(kinds) == 1 or kinds == _SETS)
                and widens(source.item, target.item)
                and not (kinds <= _SETS and _loses_hash(source.item, target.item))
            )
        case Tuple(), Tuple():
            return len(source.items) == len(target.items) and all(
                map(widens, source.items, target.items)
            )
        case Tuple(), VariadicTuple():
            return all(widens(item, target.item) for item in source.items)
        case VariadicTuple(), VariadicTuple():
            return widens(source.item, target.item)
        case Dict(), Dict():
            return widens(source.key, target.key) and widens(source.value, target.value)
        case Record(), Record():
            return _widens_record(source, target)
        case Enum(), Enum() if target.base == FLAG:
            # Combinations of what is a value of a flag are its values too.
            return source.base in (FLAG, "int") and all(
                is_combined(target, value) for _, value in source.members
            )
        case Enum(), Enum():
            values = {constant_key(value) for _, value in target.members}
            return source.base == target.base and all(
                constant_key(value) in values for _, value in source.members
            )
        case Literal(), Literal():
            return set(source.keys) <= set(target.keys)
        case Literal(), Scalar():
            return all(_scalar_of(value) == target.name for value in source.values)
        case Scalar(name="none"), Literal():
            return ("NoneType", None) in target.keys
        case Scalar(name="bool"), Literal():
            return {("bool", True), ("bool", False)} <= set(target.keys)
        case _:
            return not _inhabited(source)


def _loses_hash(source: Type, target: Type) -> bool:
    """Whether `Any` may read as a `dict`, which no set holds, what the source has as a record."""
    return (
        source != target
        and ANY in walk(target)
        and any(isinstance(each, Record) for each in walk(source))
    )


def _widens_record(source: Record, target: Record) -> bool:
    theirs = {each.name: each for each in target.fields}
    ours = {each.name: each for each in source.fields}
    if not ours.keys() <= theirs.keys():
        return False
    for name, wanted in theirs.items():
        given = ours.get(name)
        if given is None:
            if wanted.required:
                return False
        elif (wanted.required and not given.required) or not widens(given.type, wanted.type):
            return False
    return True


def _scalar_of(value: Constant) -> str:
    return "none" if value is None else type(value).__name__


def _inhabited(of: Type) -> bool:
    """Whether a type has values at all; only the empty literal has none."""
    return not (isinstance(of, Literal) and not of.values)


def _with_method(source: Type, target: Type, method: str) -> Verdict:
    rule = METHODS.get(method)
    if rule is None:
        known = ", ".join(METHODS)
        return Verdict(
            VerdictKind.REFUTED, reason=f"{method[:64]!r} is no conversion; there are {known}"
        )
    made = rule(source) if source != ANY else _from_any(method)
    if made is None:
        return Verdict(VerdictKind.REFUTED, reason=f"{method} does not take {_shown(source)}")
    # What JSON text holds is known at run time only: it is read by the target's type there.
    if (method == "json_to_value" and contains_named(target) is None) or widens(made, target):
        return Verdict(VerdictKind.CONVERSION, method, lossless=method not in LOSSY)
    return Verdict(
        VerdictKind.REFUTED,
        reason=f"{method} makes {_shown(made)}, which is not {_shown(target)}",
    )


def _from_any(method: str) -> Type | None:
    """Give what a method makes of a value of unknown type; it fails at run time where it must."""
    return METHODS["value_to_json"](ANY) if method == "value_to_json" else None


def _refuted(source: Type, target: Type) -> Verdict:
    name = contains_named(source) or contains_named(target)
    named: list[str] = []
    if name is not None:
        reason = f"values of {name} are not carried between nodes"
    elif source == ANY:
        reason = f"nothing is known of the value; {_shown(target)} is needed: annotate the source"
    else:
        reason = f"{_shown(source)} is not {_shown(target)}"
        named = [method for method in NAMED if verdict(source, target, method).fits]
        if named:
            reason += f"; naming the conversion {' or '.join(named)} on the edge would make it fit"
    return Verdict(
        VerdictKind.REFUTED,
        reason=reason,
        counter_example=_counter_example(source, target),
        mended_by=tuple(named),
    )


def _counter_example(source: Type, target: Type) -> str | None:
    if isinstance(target, Named):
        return None
    for value in examples(source):
        if check_value(target, value) is not None:
            return dump_exact(value)
    return None


def _shown(of: Type) -> str:
    text = expression(of)
    return text if len(text) <= _SHOWN_CHARS_MAX else text[: _SHOWN_CHARS_MAX - 1] + "…"
