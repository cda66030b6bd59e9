"""Constructs, settings and kinds of edges in documents, with the keys of the stored form.

A built-in node is referred to by its kind, a sub-workflow by its id: neither is part of the
document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

from qflow.types import to_text

from services.registry.domain.builtins import BY_KIND
from services.registry.domain.constructs import (
    ALL,
    ALL_DONE,
    ANY_OF,
    BRANCH,
    CONTINUE,
    FAIL,
    FAILURE,
    FINALLY,
    FINISH,
    N_OF,
    NETWORKS,
    ORDER,
    REUSES,
    TIERS,
    WORKFLOW,
    Approval,
    Branch,
    Choice,
    Construct,
    Join,
    Loop,
    Map,
    Requirements,
    Signal,
    Sleep,
    SubWorkflow,
)
from services.registry.domain.definition import WorkflowNode
from services.registry.domain.document import Item, Number, Plain
from services.registry.domain.exact_values import exact
from services.registry.domain.exchange_values import Values
from services.registry.domain.stored_constructs import requirements_to_json
from services.registry.domain.yaml_text import Inline

KINDS: Final = (*BY_KIND, WORKFLOW)
_SPANS: Final = ("queue_timeout_ms", "total_timeout_ms", "heartbeat_timeout_ms", "cache_ttl_ms")
_COUNTS: Final = ("cpus", "memory_bytes", "gpus")
NODE_KEYS: Final = (
    *KINDS,
    *("join", "condition", "on_failure", "phase", "compensates", "map", "loop"),
    *("reuse", "runner", "network", "egress_hosts", "concurrency"),
    *_SPANS,
)
CONNECTION_KEYS: Final = ("kind", "branch")
_CONTRACT_NAMES: Final = {WORKFLOW: "node_id", "map": "for_each", "loop": "repeat"}
_VERSION_MAX: Final = 2**31 - 1


def contract_name(key: str) -> str:
    """Return the contract's name for a document key of a place."""
    return _CONTRACT_NAMES.get(key) or key.removesuffix("_ms")


def written_constructs(node: WorkflowNode) -> dict[str, Plain]:
    """Return the optional keys of a place."""
    shown: dict[str, Plain] = {}
    if isinstance(node.construct, SubWorkflow):
        version = {"version": node.version} if node.version else {}
        shown[WORKFLOW] = Inline({"id": str(node.node_id), **version})
    elif node.construct is not None:
        shown[node.kind] = _construct(node.construct)
    if node.join is not None:
        count = {"count": node.join.count} if node.join.count else {}
        shown["join"] = Inline({"policy": node.join.policy, **count})
    for key in ("condition", "on_failure", "phase", "compensates"):
        if getattr(node, key):
            shown[key] = getattr(node, key)
    if node.mapped is not None:
        shown["map"] = _map(node.mapped)
    if node.loop is not None:
        shown["loop"] = _loop(node.loop)
    for key in _SPANS:
        if getattr(node, key) is not None:
            shown[key] = getattr(node, key)
    return shown | _where(node)


def _where(node: WorkflowNode) -> dict[str, Plain]:
    """Return the keys that say how and where a place runs."""
    shown: dict[str, Plain] = {"reuse": node.reuse} if node.reuse else {}
    if node.runner is not None:
        said = requirements_to_json(node.runner)
        if "labels" in said:
            said["labels"] = Inline(sorted(said["labels"].items()))
        shown["runner"] = Inline(said)
    if node.network:
        shown["network"] = node.network
    if node.egress_hosts:
        shown["egress_hosts"] = [*node.egress_hosts]
    if node.concurrency:
        shown["concurrency"] = node.concurrency
    return shown


def _construct(construct: Construct) -> Plain:
    match construct:
        case Choice():
            branches: list[Plain] = [
                Inline(name=each.name, condition=each.condition) for each in construct.branches
            ]
            default = {"default": construct.default} if construct.default else {}
            return {"branches": branches, **default}
        case Signal() | Approval():
            shown = Inline(name=construct.name)
            if construct.type is not None:
                shown["type"] = exact(to_text(construct.type))
            if construct.timeout_ms is not None:
                shown["timeout_ms"] = construct.timeout_ms
            if isinstance(construct, Signal) and construct.default_json is not None:
                shown["default"] = exact(construct.default_json)
            return shown
        case _:
            return Inline()


def _map(mapped: Map) -> Plain:
    shown = Inline(input=mapped.input)
    if mapped.depth != 1:
        shown["depth"] = mapped.depth
    for key in ("max_in_flight", "max_failed"):
        if getattr(mapped, key) is not None:
            shown[key] = getattr(mapped, key)
    if mapped.max_failed_ratio is not None:
        shown["max_failed_ratio"] = Number(repr(float(mapped.max_failed_ratio)))
    return shown


def _loop(loop: Loop) -> Plain:
    shown: dict[str, Plain] = {"condition": loop.condition, "max_turns": loop.max_turns}
    if loop.carry:
        shown["carry"] = Inline(loop.carry)
    if loop.at_max != FINISH:
        shown["at_max"] = loop.at_max
    return shown


def constructs_from(
    read: Values, found: Mapping[str, Item], node: str, path: str
) -> dict[str, Any]:
    """Parse the optional keys of a place into arguments of WorkflowNode; `node` is its id."""
    given: dict[str, Any] = {
        key: read.text(found.get(key), f"{path}.{key}") for key in ("condition", "compensates")
    }
    given["on_failure"] = _word(read, found, "on_failure", path, (CONTINUE,))
    given["phase"] = _word(read, found, "phase", path, (FINALLY,))
    for kind in KINDS:
        if kind in found:
            given |= _construct_from(read, kind, found[kind], node, f"{path}.{kind}")
    if "join" in found:
        given["join"] = _join_from(read, found["join"], f"{path}.join")
    if "map" in found:
        given["mapped"] = _map_from(read, found["map"], f"{path}.map")
    if "loop" in found:
        given["loop"] = _loop_from(read, found["loop"], f"{path}.loop")
    for key in _SPANS:
        given[key] = read.span(found.get(key), f"{path}.{key}")
    given["reuse"] = _word(read, found, "reuse", path, REUSES)
    given["network"] = _word(read, found, "network", path, NETWORKS)
    given["egress_hosts"] = read.texts(found.get("egress_hosts"), f"{path}.egress_hosts")
    given["concurrency"] = read.integer(found.get("concurrency"), f"{path}.concurrency", 0)
    if "runner" in found:
        given["runner"] = _requirements_from(read, found["runner"], f"{path}.runner")
    return given


def _requirements_from(read: Values, item: Item, path: str) -> Requirements:
    found = read.members(item, path, optional=("isolation", "labels", *_COUNTS))
    labels = read.mapping(found["labels"], f"{path}.labels") if "labels" in found else {}
    return Requirements(
        isolation=_word(read, found, "isolation", path, TIERS),
        labels=tuple(
            sorted(
                (name, read.text(each, f"{path}.labels.{name}")) for name, each in labels.items()
            )
        ),
        **{key: read.integer(found.get(key), f"{path}.{key}", 0) for key in _COUNTS},
    )


def connection_from(read: Values, found: Mapping[str, Item], path: str) -> tuple[str, str]:
    """Parse the kind of an edge, and its branch if it is one."""
    if "branch" in found:
        if "kind" in found:
            read.add(found["kind"], f"{path}.kind", "KEY_UNKNOWN", "is said by branch already")
        return BRANCH, read.text(found["branch"], f"{path}.branch")
    return _word(read, found, "kind", path, (ORDER, FAILURE)), ""


def _word(
    read: Values,
    found: Mapping[str, Item],
    key: str,
    path: str,
    known: tuple[str, ...],
) -> str:
    word = read.text(found.get(key), f"{path}.{key}")
    if word and word not in known:
        message = f"must be {' or '.join(known)}"
        read.add(found[key], f"{path}.{key}", "VALUE_INVALID", message)
        return ""
    return word


def _construct_from(read: Values, kind: str, item: Item, node: str, path: str) -> dict[str, Any]:
    if kind == WORKFLOW:
        return _workflow_from(read, item, path)
    construct: Construct = Sleep()
    if kind == Choice.kind:
        construct = _choice_from(read, item, path)
    elif kind in (Signal.kind, Approval.kind):
        construct = _waited_from(read, kind, item, node, path)
    else:
        read.members(item, path)
    return {"construct": construct, "node_id": BY_KIND[kind].id, "version": 0}


def _workflow_from(read: Values, item: Item, path: str) -> dict[str, Any]:
    found = read.members(item, path, ("id",), ("version",))
    text = read.text(found.get("id"), f"{path}.id")
    workflow_id = UUID(int=0)
    try:
        workflow_id = UUID(text) if text else workflow_id
    except ValueError:
        read.add(found["id"], f"{path}.id", "VALUE_INVALID", "must be the UUID of a workflow")
    version = min(read.integer(found.get("version"), f"{path}.version", 0), _VERSION_MAX)
    return {"construct": SubWorkflow(), "node_id": workflow_id, "version": version}


def _choice_from(read: Values, item: Item, path: str) -> Choice:
    found = read.members(item, path, ("branches",), ("default",))
    branches = []
    for at, each in enumerate(read.sequence(found.get("branches"), f"{path}.branches")):
        here = f"{path}.branches[{at}]"
        branch = read.members(each, here, ("name", "condition"))
        texts = [read.text(branch.get(key), f"{here}.{key}") for key in ("name", "condition")]
        branches.append(Branch(*texts))
    default = read.text(found.get("default"), f"{path}.default")
    return Choice(branches=tuple(branches), default=default or None)


def _waited_from(read: Values, kind: str, item: Item, node: str, path: str) -> Signal | Approval:
    keys = ("name", "type", "timeout_ms", *(("default",) if kind == Signal.kind else ()))
    found = read.members(item, path, optional=keys)
    type_text = read.value_text(found["type"], f"{path}.type") if "type" in found else ""
    name = read.text(found.get("name"), f"{path}.name") or node
    timeout_ms = read.span(found.get("timeout_ms"), f"{path}.timeout_ms")
    if kind == Approval.kind:
        return Approval(name=name, type_text=type_text, timeout_ms=timeout_ms)
    default = read.value_text(found["default"], f"{path}.default") if "default" in found else None
    return Signal(name=name, type_text=type_text, timeout_ms=timeout_ms, default_json=default)


def _join_from(read: Values, item: Item, path: str) -> Join:
    found = read.members(item, path, ("policy",), ("count",))
    policy = _word(read, found, "policy", path, (ALL, ANY_OF, N_OF, ALL_DONE))
    count = min(read.integer(found.get("count"), f"{path}.count", 0), _VERSION_MAX)
    return Join(policy=policy or ALL, count=count)


def _map_from(read: Values, item: Item, path: str) -> Map:
    limits = ("max_in_flight", "max_failed")
    found = read.members(item, path, ("input",), ("depth", *limits, "max_failed_ratio"))
    given: dict[str, Any] = {
        key: min(read.integer(found[key], f"{path}.{key}", 0), _VERSION_MAX)
        for key in limits
        if key in found
    }
    if "max_failed_ratio" in found:
        where = f"{path}.max_failed_ratio"
        given["max_failed_ratio"] = read.real(found["max_failed_ratio"], where, 0.0)
    depth = min(read.integer(found.get("depth"), f"{path}.depth", 1), _VERSION_MAX)
    return Map(input=read.text(found.get("input"), f"{path}.input"), depth=depth, **given)


def _loop_from(read: Values, item: Item, path: str) -> Loop:
    found = read.members(item, path, ("condition", "max_turns"), ("carry", "at_max"))
    carried = read.mapping(found["carry"], f"{path}.carry") if "carry" in found else {}
    turns = min(read.integer(found.get("max_turns"), f"{path}.max_turns", 1), _VERSION_MAX)
    at_max = _word(read, found, "at_max", path, (FINISH, FAIL))
    return Loop(
        condition=read.text(found.get("condition"), f"{path}.condition"),
        max_turns=turns,
        carry=tuple(
            (name, read.text(each, f"{path}.carry.{name[:80]}")) for name, each in carried.items()
        ),
        at_max=at_max or FINISH,
    )
