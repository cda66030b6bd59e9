"""Check constructs of places: choices, joins, maps, loops, compensations and their settings."""

from __future__ import annotations

from qflow.types import (
    Type,
    VerdictKind,
    expression,
)

from services.registry.domain.checks.state import Check
from services.registry.domain.constructs import (
    ANY_OF,
    EGRESS,
    FINALLY,
    HOST_PATTERN,
    N_OF,
    Choice,
    Loop,
    Map,
    SubWorkflow,
)
from services.registry.domain.definition import Signature, WorkflowNode


def constructs(check: Check) -> None:
    """Check the constructs of every place."""
    places = [(at, node) for at, node in enumerate(check.definition.nodes) if not _is_bare(node)]
    if not places:
        return
    for index, node in places:
        place = f"nodes[{index}]"
        if isinstance(node.construct, Choice):
            _choice(check, node.construct, f"{place}.choice")
        _join(check, node, place, len(set(check.parents.get(node.id, ()))))
        _undoing(check, node, place)
        _built_in(check, node, place)
        _again(check, node, place, check.inner[index])


def _is_bare(node: WorkflowNode) -> bool:
    """Return whether a place has nothing to check here, as most do."""
    return not (
        node.construct
        or node.join
        or node.compensates
        or node.mapped
        or node.loop
        or node.egress_hosts
    )


def _choice(check: Check, choice: Choice, place: str) -> None:
    if not choice.branches:
        check.error(f"{place}.branches", "CHOICE_EMPTY", "a choice has a branch at least")
    seen: dict[str, int] = {}
    for index, each in enumerate(choice.branches):
        here = f"{place}.branches[{index}]"
        first = seen.setdefault(each.name, index)
        if first != index:
            message = f"{each.name} is the name of branches[{first}] already"
            check.error(f"{here}.name", "DUPLICATE_BRANCH", message)


def _join(check: Check, node: WorkflowNode, place: str, sources: int) -> None:
    join = node.join
    if join is None:
        return
    fault = ""
    if join.policy == N_OF and not 1 <= join.count <= sources:
        fault = f"waits for {join.count} of its {sources} sources"
    elif join.policy == ANY_OF and not sources:
        fault = "waits for any of its sources, and has none"
    elif join.policy != N_OF and join.count:
        fault = f"has a count, which the policy {join.policy} has no use for"
    if fault:
        hint = "count is from 1 to the number of sources, with the policy n_of alone"
        check.error(f"{place}.join", "JOIN_COUNT", f"{node.id} {fault}", hint)


def _undoing(check: Check, node: WorkflowNode, place: str) -> None:
    if not node.compensates:
        return
    here = f"{place}.compensates"
    undone = check.places.get(node.compensates)
    if undone is None:
        message = f"there is no node {node.compensates} in this workflow"
        check.error(here, "UNKNOWN_NODE", message)
    elif node.compensates == node.id:
        check.error(here, "COMPENSATES_ITSELF", f"{node.id} cannot undo itself")
    elif not check.definition.nodes[undone].is_main:
        message = f"{node.compensates} is no main node, and is never undone"
        check.error(here, "COMPENSATES_NOT_MAIN", message)
    else:
        _uncached(check, node, place, f"undoes {node.compensates} each time")
        message = f"is undone by {node.id} where its run fails, and its result is that run's alone"
        _uncached(check, check.definition.nodes[undone], f"nodes[{undone}]", message)
    if node.phase == FINALLY:
        message = f"{node.id} runs at the end in any case, or to undo another; not both"
        check.error(f"{place}.phase", "PHASE_CONFLICT", message)


def _built_in(check: Check, node: WorkflowNode, place: str) -> None:
    """Report settings that have no effect on a place that the engine runs itself."""
    if node.mapped is not None or node.loop is not None:
        _uncached(check, node, place, "runs for each element or again and again")
    for at, host in enumerate(node.egress_hosts):
        here = f"{place}.egress_hosts[{at}]"
        if node.network != EGRESS:
            message = f"{node.id} names hosts, and its network is not egress"
            check.error(here, "SETTING_NOT_HERE", message, "set the network to egress")
        elif not HOST_PATTERN.fullmatch(host):
            message = "must be a name, *.name or *, in lower case, and :port where one is meant"
            check.error(here, "EGRESS_HOST_INVALID", message)
    if node.construct is None:
        return
    useless = {
        "queue_timeout": node.queue_timeout_ms is not None,
        "heartbeat_timeout": node.heartbeat_timeout_ms is not None,
        "cache_ttl": node.cache_ttl_ms is not None,
        "reuse": bool(node.reuse),
        "runner": node.runner is not None,
        "network": bool(node.network),
    }
    if not isinstance(node.construct, SubWorkflow):
        useless["retry"] = node.retry is not None
        useless["total_timeout"] = node.total_timeout_ms is not None
        useless["for_each"] = node.mapped is not None
        useless["repeat"] = node.loop is not None
    for name, is_set in useless.items():
        if is_set:
            message = f"{node.id} is run by the engine itself, where this has no effect"
            check.error(f"{place}.{name}", "SETTING_NOT_HERE", message, "remove it")


def _uncached(check: Check, node: WorkflowNode, place: str, why: str) -> None:
    if node.cache_ttl_ms is not None:
        message = f"{node.id} {why}, and is not cached"
        check.error(f"{place}.cache_ttl", "SETTING_NOT_HERE", message, "remove it")


def _again(
    check: Check,
    node: WorkflowNode,
    place: str,
    signature: Signature | None,
) -> None:
    if node.mapped is not None and node.loop is not None:
        message = f"{node.id} runs for each element or again and again; not both"
        check.error(f"{place}.repeat", "MAP_AND_LOOP", message, "put one of them into a workflow")
    if signature is None:
        return
    if node.mapped is not None:
        _map(check, node.id, node.mapped, f"{place}.for_each", signature)
    if node.loop is not None:
        _loop(check, node.id, node.loop, f"{place}.repeat", signature)


def _map(check: Check, node: str, mapped: Map, place: str, signature: Signature) -> None:
    if mapped.input not in signature.inputs:
        check.unknown(f"{place}.input", "UNKNOWN_INPUT", node, mapped.input, signature.inputs)


def _loop(
    check: Check,
    node: str,
    loop: Loop,
    place: str,
    signature: Signature,
) -> None:
    seen: set[str] = set()
    for index, (name, output) in enumerate(loop.carry):
        here = f"{place}.carry[{index}]"
        spec, of = signature.inputs.get(name), signature.outputs.get(output)
        if spec is None:
            check.unknown(f"{here}.input", "UNKNOWN_INPUT", node, name, signature.inputs)
        elif name in seen:
            check.error(f"{here}.input", "DUPLICATE_CARRY", f"{name} is carried to already")
        if of is None:
            check.unknown(f"{here}.output", "UNKNOWN_OUTPUT", node, output, signature.outputs)
        if spec is not None and of is not None:
            _carried(check, here, of, spec.type)
        seen.add(name)


def _carried(check: Check, place: str, of: Type, target: Type) -> None:
    said = check.judge(of, target, "")
    if said.fits and said.kind is not VerdictKind.CONVERSION:
        return
    fault = said.reason or f"{expression(of)} would fit by {said.method} alone"
    if said.counter_example is not None:
        fault += f" (for example {said.counter_example[:200]})"
    check.error(place, "TYPE_REFUTED", fault, "let the output be what the input takes as it stands")
