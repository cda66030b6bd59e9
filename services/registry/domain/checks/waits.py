"""Check waits for signals and approvals: the types that they state, and conflicts of names."""

from __future__ import annotations

from dataclasses import replace

from qflow.types import (
    ANY,
    Type,
    TypeFormatError,
    check_value,
    contains_named,
    expression,
    from_text,
)
from qflow.types.examples import examples
from qflow.types.verdict import widens

from services.registry.domain.checks.state import Check
from services.registry.domain.constructs import Approval, Signal
from services.registry.domain.definition import WorkflowNode


def read_types(check: Check) -> tuple[WorkflowNode, ...]:
    """Parse the types of waits as callers wrote them; returns the places with these types."""
    return tuple(
        replace(node, construct=_waited(check, node.construct, f"nodes[{index}].{node.kind}"))
        if isinstance(node.construct, Signal | Approval)
        else node
        for index, node in enumerate(check.definition.nodes)
    )


def _waited(check: Check, construct: Signal | Approval, place: str) -> Signal | Approval:
    of = construct.type
    if construct.type_text:
        try:
            of = from_text(construct.type_text)
        except TypeFormatError as error:
            check.error(f"{place}.type_json", "TYPE_INVALID", str(error))
            of = ANY
    elif of is None and isinstance(construct, Signal):
        check.error(f"{place}.type_json", "TYPE_MISSING", "a signal states the type of its value")
        of = ANY
    opaque = None if of is None else contains_named(of)
    if opaque is not None:
        message = f"values of {opaque} cannot be written as JSON"
        check.error(f"{place}.type_json", "TYPE_NOT_CARRIED", message)
    elif isinstance(construct, Signal) and construct.default_json is not None and of is not None:
        check.value(f"{place}.default_json", of, construct.default_json)
    return replace(construct, type=of, type_text="")


def same_names(check: Check) -> None:
    """Report waits with the same name whose types no single value satisfies.

    A sent value must match the type of each of them.
    """
    narrowest: dict[tuple[str, str], tuple[int, WorkflowNode, Type]] = {}
    for index, node in enumerate(check.definition.nodes):
        wait = node.construct
        if not isinstance(wait, Signal | Approval) or wait.type is None:
            continue
        key, here = (node.kind, wait.name), (index, node, wait.type)
        at, other, of = narrowest.setdefault(key, here)
        if _meet(wait.type, of):
            if widens(wait.type, of):
                narrowest[key] = here
            continue
        message = (
            f"{node.id} (nodes[{index}]) waits for {wait.name} as {expression(wait.type)},"
            f" {other.id} (nodes[{at}]) as {expression(of)}: nothing that is sent would be both"
        )
        hint = "give both the same type, or each a name of its own"
        check.error(f"nodes[{index}].{node.kind}.type_json", "WAIT_TYPES_DIFFER", message, hint)


def _meet(one: Type, other: Type) -> bool:
    """Return whether some value belongs to both types, as far as examples show."""
    return (
        one == other
        or any(check_value(one, each) is None for each in examples(other))
        or any(check_value(other, each) is None for each in examples(one))
    )
