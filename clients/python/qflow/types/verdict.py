"""Verdicts on edges: whether the type of the source fits the type of the target.

`exact` and `widening` mean that every value of the source, in its wire form, is a value of the
target. A conversion belongs to the edge, so it applies to the whole value, never to a part of it.
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
    """The four verdicts."""

    EXACT = "exact"
    WIDENING = "widening"
    CONVERSION = "conversion"
    REFUTED = "refuted"


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one edge.

    If it is refuted, `counter_example` is the JSON text of a value that would fail, and `mended_by`
    has the conversions that would each make it fit.
    """

    kind: VerdictKind
    method: str = ""
    lossless: bool = True
    reason: str = ""
    counter_example: str | None = None
    mended_by: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """Whether the edge is accepted."""
        return self.kind is not VerdictKind.REFUTED


_EXACT: Final = Verdict(VerdictKind.EXACT)
_WIDENING: Final = Verdict(VerdictKind.WIDENING)


def verdict(source: Type, target: Type, conversion: str = "") -> Verdict:
    """Return the verdict on an edge, with a given conversion if there is one.

    Otherwise the first lossless conversion that makes the types fit is chosen, if needed.
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
    """Return whether each value of the source, in its wire form, is a value of the target."""
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
    """Return whether the few values of a type fit different members of a union."""
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
            # Combinations of values of a flag are its values, too.
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
    """Return whether records of the source may be decoded as unhashable dicts, because of `Any`."""
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
    """Return whether a type has any value; only the empty literal has none."""
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
    # The contents of a JSON text are known at run time only, when it is decoded by the target.
    if (method == "json_to_value" and contains_named(target) is None) or widens(made, target):
        return Verdict(VerdictKind.CONVERSION, method, lossless=method not in LOSSY)
    return Verdict(
        VerdictKind.REFUTED,
        reason=f"{method} makes {_shown(made)}, which is not {_shown(target)}",
    )


def _from_any(method: str) -> Type | None:
    """Return the result type of a conversion of any type; it may fail at run time."""
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
