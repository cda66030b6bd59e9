"""Conversion between the constructs of a place and their JSON in the tables.

The orchestrator reads these shapes. An absent key keeps the meaning from before the key existed: a
Python node that runs once, when all its sources have ended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from qflow.types import from_json, to_json

from services.registry.domain.constructs import (
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

Json = dict[str, Any]

_TEXTS = ("condition", "on_failure", "phase", "compensates")
_SPANS = ("queue_timeout_ms", "total_timeout_ms", "heartbeat_timeout_ms", "cache_ttl_ms")


def constructs_to_json(node: WorkflowNode) -> Json:
    """Return the optional keys of a place."""
    stored: Json = {}
    if node.construct is not None:
        stored["kind"] = node.kind
        if not isinstance(node.construct, SubWorkflow):
            stored[node.kind] = _construct_to_json(node.construct)
    if node.join is not None:
        stored["join"] = {"policy": node.join.policy, "count": node.join.count}
    for key in _TEXTS:
        if getattr(node, key):
            stored[key] = getattr(node, key)
    if node.mapped is not None:
        stored["map"] = asdict(node.mapped)
    if node.loop is not None:
        stored["loop"] = asdict(node.loop) | {"carry": dict(node.loop.carry)}
    for key in _SPANS:
        if getattr(node, key) is not None:
            stored[key] = getattr(node, key)
    return stored | _where_to_json(node)


def _where_to_json(node: WorkflowNode) -> Json:
    stored: Json = {"reuse": node.reuse} if node.reuse else {}
    if node.runner is not None:
        stored["runner"] = requirements_to_json(node.runner)
    if node.network:
        stored["network"] = node.network
    if node.egress_hosts:
        stored["egress_hosts"] = list(node.egress_hosts)
    if node.concurrency:
        stored["concurrency"] = node.concurrency
    return stored


def requirements_to_json(runner: Requirements) -> Json:
    """Return the requirements of a runner, without unset ones."""
    said = asdict(runner) | {"labels": dict(runner.labels)}
    return {key: value for key, value in said.items() if value}


def _requirements_from_json(stored: Mapping[str, Any]) -> Requirements:
    labels = tuple(sorted(dict(stored.get("labels") or {}).items()))
    return Requirements(**{**stored, "labels": labels})


def _construct_to_json(construct: Construct) -> Json:
    match construct:
        case Choice():
            return {
                "branches": [
                    {"name": each.name, "condition": each.condition} for each in construct.branches
                ],
                "default": construct.default,
            }
        case Signal():
            return _waited_to_json(construct) | {"default": construct.default_json}
        case Approval():
            return _waited_to_json(construct)
        case _:
            return {}


def _waited_to_json(construct: Signal | Approval) -> Json:
    of = construct.type
    # A type that is not parsed yet is only sent to the checking process, never stored.
    unread = {"type_text": construct.type_text} if construct.type_text else {}
    return unread | {
        "name": construct.name,
        "type": None if of is None else to_json(of),
        "timeout_ms": construct.timeout_ms,
    }


def constructs_from_json(stored: Mapping[str, Any]) -> Json:
    """Parse the result of `constructs_to_json` into arguments of WorkflowNode."""
    told = (*_TEXTS, *_SPANS, "reuse", "network", "concurrency")
    found: Json = {key: stored[key] for key in told if stored.get(key) is not None}
    if "kind" in stored:
        found["construct"] = _construct_from_json(stored["kind"], stored.get(stored["kind"]) or {})
    if "join" in stored:
        found["join"] = Join(**stored["join"])
    if "map" in stored:
        found["mapped"] = Map(**stored["map"])
    if "loop" in stored:
        carry = tuple((stored["loop"].get("carry") or {}).items())
        found["loop"] = Loop(**{**stored["loop"], "carry": carry})
    if stored.get("runner") is not None:
        found["runner"] = _requirements_from_json(stored["runner"])
    if stored.get("egress_hosts"):
        found["egress_hosts"] = tuple(stored["egress_hosts"])
    return found


def _construct_from_json(kind: str, stored: Mapping[str, Any]) -> Construct | None:
    match kind:
        case Choice.kind:
            branches = tuple(Branch(each["name"], each["condition"]) for each in stored["branches"])
            return Choice(branches=branches, default=stored.get("default"))
        case Sleep.kind:
            return Sleep()
        case Signal.kind:
            return Signal(**_waited_from_json(stored), default_json=stored.get("default"))
        case Approval.kind:
            return Approval(**_waited_from_json(stored))
        case SubWorkflow.kind:
            return SubWorkflow()
        case _:
            return None


def _waited_from_json(stored: Mapping[str, Any]) -> Json:
    of = stored.get("type")
    return {
        "name": stored.get("name") or "",
        "type": None if of is None else from_json(of),
        "timeout_ms": stored.get("timeout_ms"),
        "type_text": stored.get("type_text", ""),
    }
