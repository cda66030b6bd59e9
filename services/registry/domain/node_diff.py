"""Differences between two versions of a node that edges, literals and starters depend on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from qflow.types import Type, VerdictKind, expression, to_text, verdict

from services.registry.domain.requirements import Requirement
from services.registry.domain.source import Output, Parameter
from services.registry.domain.type_size import type_size

CHARS_MAX: Final = 1_000
_COMPARISONS_MAX: Final = 30_000

Kind = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class Change:
    """A part that differs; `can_break` if what fits the old version may not fit the new one."""

    kind: Kind
    place: str
    before: str = ""
    after: str = ""
    can_break: bool = False


def changed(place: str, before: str, after: str, *, can_break: bool = False) -> Iterator[Change]:
    """Yield a change of a part that both versions have, if it differs; long texts are cut."""
    if before != after:
        yield Change("changed", place, cut(before), cut(after), can_break)


def cut(text: str) -> str:
    """Cut a text to the length that a change shows."""
    return text if len(text) <= CHARS_MAX else f"{text[: CHARS_MAX - 1]}…"


def inputs_diff(before: Sequence[Parameter], after: Sequence[Parameter]) -> Iterator[Change]:
    """Compare inputs by name."""
    old, new = ({each.name: each for each in side} for side in (before, after))
    for name in dict.fromkeys([*old, *new]):
        place = f"inputs.{name}"
        if name not in new:
            yield Change("removed", place, cut(_shown(old[name])), can_break=True)
        elif name not in old:
            # Nothing feeds a new input yet, so without a default it is missing in workflows.
            required = new[name].required
            yield Change("added", place, after=cut(_shown(new[name])), can_break=required)
        else:
            yield from _input(place, old[name], new[name])
    yield from _order(before, after)


def _input(place: str, old: Parameter, new: Parameter) -> Iterator[Change]:
    if old.type != new.type:
        # Every value accepted before must still be accepted.
        yield from _typed(f"{place}.type", old.type, new.type, fits=_fits(old.type, new.type))
    yield from changed(f"{place}.kind", old.kind, new.kind)
    yield from changed(
        f"{place}.default",
        _default(old),
        _default(new),
        can_break=new.required and not old.required,
    )


def _typed(place: str, old: Type, new: Type, *, fits: bool) -> Iterator[Change]:
    """Yield a change of a type; types with equal short texts are shown in full."""
    texts = expression(old), expression(new)
    if texts[0] == texts[1]:
        texts = to_text(old), to_text(new)
    yield from changed(place, *texts, can_break=not fits)


def _order(before: Sequence[Parameter], after: Sequence[Parameter]) -> Iterator[Change]:
    """Yield a change if inputs were only reordered; edges refer to names."""
    both = {each.name for each in before} & {each.name for each in after}
    old, new = ([each.name for each in side if each.name in both] for side in (before, after))
    yield from changed("inputs", ", ".join(old), ", ".join(new))


def outputs_diff(before: Sequence[Output], after: Sequence[Output]) -> Iterator[Change]:
    """Compare outputs by name."""
    old, new = ({each.name: each.type for each in side} for side in (before, after))
    for name in dict.fromkeys([*old, *new]):
        place = f"outputs.{name}"
        if name not in new:
            yield Change("removed", place, cut(expression(old[name])), can_break=True)
        elif name not in old:
            yield Change("added", place, after=cut(expression(new[name])))
        elif old[name] != new[name]:
            # Every new value must be a value of the old type.
            fits = _fits(new[name], old[name])
            yield from _typed(f"{place}.type", old[name], new[name], fits=fits)


def requirements_diff(
    before: Sequence[Requirement], after: Sequence[Requirement]
) -> Iterator[Change]:
    """Compare requirements by distribution."""
    old, new = (_by_name(side) for side in (before, after))
    for name in sorted({*old, *new}):
        place = f"requirements.{name}"
        if name not in new:
            yield Change("removed", place, cut(old[name]))
        elif name not in old:
            yield Change("added", place, after=cut(new[name]))
        else:
            yield from changed(place, old[name], new[name])


def _by_name(requirements: Sequence[Requirement]) -> Mapping[str, str]:
    """Return the full specifiers by distribution name."""
    found: dict[str, list[str]] = {}
    for each in requirements:
        name = each.requirement
        for sign in "[<>=!~ ;@(":
            name = name.partition(sign)[0]
        found.setdefault(name.lower(), []).append(each.requirement)
    return {name: ", ".join(sorted(those)) for name, those in found.items()}


def _fits(source: Type, target: Type) -> bool:
    """Return whether every value of one type is known to be a value of the other."""
    if type_size(source) * type_size(target) > _COMPARISONS_MAX:
        return False  # assumed to break edges: the comparison would take too long
    said = verdict(source, target, "")
    return said.kind in {VerdictKind.EXACT, VerdictKind.WIDENING}


def _default(of: Parameter) -> str:
    if of.required:
        return "none"
    return "computed" if of.default_json is None else of.default_json


def _shown(of: Parameter) -> str:
    default = "" if of.required else f" = {_default(of)}"
    return f"{expression(of.type)}{default}"
