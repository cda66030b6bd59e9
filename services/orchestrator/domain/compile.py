"""Compiles a stored definition and its pinned versions into a plan."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

from qflow.types import Type, from_json

from services.kit.cel import Expression, compile_expression
from services.orchestrator.domain.needs import needs_of
from services.orchestrator.domain.output_types import Outputs
from services.orchestrator.domain.plan import (
    ERROR_OUTPUT,
    FROM_LITERAL,
    FROM_RUN,
    FROM_TURN,
    NO_RETRY,
    NODE_MEMORY_BYTES_DEFAULT,
    NODE_TIMEOUT_MS_DEFAULT,
    Binding,
    ChoiceRule,
    Definition,
    Kind,
    Link,
    LoopRule,
    MapRule,
    NodeVersion,
    Phase,
    Place,
    Plan,
    RetryPolicy,
    RunInput,
    RunOutput,
    WaitRule,
    kind_of,
)
from services.orchestrator.domain.signatures import type_of

# How many elements of a map are in flight at once by default.
IN_FLIGHT_DEFAULT: Final = 1000
_NO_UUID: Final = UUID(int=0)
_NO_TEXTS: Final[Mapping[str, str]] = {}
_NO_PLANS: Final[Mapping[str, Plan]] = {}


def bound_texts(
    definition: Definition, node: Mapping[str, Any], variables: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the texts of variables and parameters that feed a place, by input; None if missing."""
    defaults = {
        str(each["name"]): each["default_json"]
        for each in definition.settings.get("parameters") or ()
    }
    texts = {
        str(name): variables.get(source) for name, source in (node.get("variables") or {}).items()
    }
    for name, source in (node.get("template_parameters") or {}).items():
        texts[str(name)] = defaults.get(source)
    return texts


def compile_plan(
    definition: Definition,
    versions: Mapping[str, NodeVersion],
    *,
    pins_id: UUID,
    variables: Mapping[str, str] = _NO_TEXTS,
    plans: Mapping[str, Plan] = _NO_PLANS,
) -> Plan:
    """Compile a definition; `versions` holds the pinned node version by place id.

    `variables` holds their pinned texts, which become literals; `plans` the plans of sub-workflows,
    by place id.
    """
    return _Compiler(definition, versions, variables, plans).plan(pins_id)


@dataclass(slots=True)
class _Compiler:
    definition: Definition
    versions: Mapping[str, NodeVersion]
    variables: Mapping[str, str]
    plans: Mapping[str, Plan]
    index: dict[str, int] = field(init=False)
    outputs: list[tuple[str, ...]] = field(init=False)
    output_types: list[tuple[Type, ...]] = field(init=False)
    run_inputs: dict[str, Mapping[str, Any]] = field(init=False)
    undone: set[str] = field(init=False)  # places with a compensation
    shared: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        nodes = self.definition.nodes
        self.index = {str(node["id"]): at for at, node in enumerate(nodes)}
        types = Outputs(self.versions, self.plans)
        given = [types.outputs_of(node) for node in nodes]
        self.outputs = [tuple(each) for each in given]
        self.output_types = [tuple(each.values()) for each in given]
        self.run_inputs = {str(each["name"]): each for each in self.definition.input_types}
        self.undone = {str(node["compensates"]) for node in nodes if node.get("compensates")}

    def plan(self, pins_id: UUID) -> Plan:
        nodes = self.definition.nodes
        phases = [_phase_of(node) for node in nodes]
        incoming: list[list[Mapping[str, Any]]] = [[] for _ in nodes]
        for connection in self.definition.connections:
            incoming[self.index[connection["target"]]].append(connection)
        links: list[list[Link]] = [[] for _ in nodes]
        parents = [0] * len(nodes)
        failures: set[int] = set()
        rescues: set[int] = set()
        for at, edges in enumerate(incoming):
            for link_source, link in self._links(at, edges, phases):
                links[link_source].append(link)
                parents[at] += 1
                if link.failure:
                    failures.add(link_source)
                if link.only_failure:
                    rescues.add(at)
        places = tuple(
            self._place(
                node, incoming[at], phases[at], handled=at in failures, rescues=at in rescues
            )
            for at, node in enumerate(nodes)
        )
        outputs = tuple(
            RunOutput(
                name=str(each["name"]),
                source=self.index[each["node_id"]],
                output=self.outputs[self.index[each["node_id"]]].index(each["output"]),
                type=type_of(each.get("type")),
            )
            for each in self.definition.output_types
        )
        subs = [place.sub for place in places if place.sub is not None]
        own = {place.python_version for place in places if place.kind is Kind.PYTHON}
        return Plan(
            pins_id=pins_id,
            workflow_id=self.definition.workflow_id,
            workflow_version=self.definition.version,
            places=places,
            children=tuple(tuple(link.child for link in each) for each in links),
            links=tuple(tuple(each) for each in links),
            parents=tuple(parents),
            readers=_readers(places, outputs),
            plain=tuple(
                all(link.done and not link.branches and not link.failure for link in each)
                for each in links
            ),
            direct=tuple(place.direct and place.needed is None for place in places),
            roots=tuple(
                at for at, count in enumerate(parents) if count == 0 and phases[at] is Phase.MAIN
            ),
            compensations=tuple(
                at for at, phase in enumerate(phases) if phase is Phase.COMPENSATION
            ),
            finals=tuple(at for at, phase in enumerate(phases) if phase is Phase.FINALLY),
            index=self.index,
            inputs=tuple(
                RunInput(name=name, type=from_json(each["type"]), required=bool(each["required"]))
                for name, each in self.run_inputs.items()
            ),
            outputs=outputs,
            timeout_ms=self.definition.settings.get("timeout_ms"),
            pythons=frozenset(own).union(*(sub.pythons for sub in subs)),
            floating=any(sub.floating for sub in subs)
            or any(not node.get("version") for node in self.definition.of_kind(Kind.WORKFLOW)),
        )

    def _links(
        self, at: int, edges: Iterable[Mapping[str, Any]], phases: Sequence[Phase]
    ) -> Iterable[tuple[int, Link]]:
        """Yield the links of a place with its index: one for each source, in order.

        A place of a later phase reads the results of main places, but does not wait for them.
        """
        found: dict[int, Link] = {}
        for edge in edges:
            if not edge["source"]:
                continue
            source = self.index[edge["source"]]
            if phases[source] is not phases[at] or phases[at] is Phase.COMPENSATION:
                continue
            link = found.get(source, Link(at, done=False, branches=frozenset(), failure=False))
            match edge.get("kind") or "data":
                case "branch":
                    link = link._replace(branches=link.branches | {str(edge["branch"])})
                case "failure":
                    link = link._replace(failure=True)
                case _:
                    link = link._replace(done=True)
            found[source] = link
        return sorted(found.items())

    def _place(
        self,
        node: Mapping[str, Any],
        edges: Iterable[Mapping[str, Any]],
        phase: Phase,
        *,
        handled: bool,
        rescues: bool,
    ) -> Place:
        name, kind = str(node["id"]), kind_of(node)
        bindings = tuple(self._bindings(node, edges))
        names = {binding.name for binding in bindings}
        version = self.versions.get(name)
        outputs = self.outputs[self.index[name]]
        join = node.get("join") or {}
        policy = join.get("policy", "all")
        retry = node.get("retry")
        loop = _loop(node, names, outputs)
        compensates = node.get("compensates")
        return Place(
            id=name,
            node_version_id=version.id if version else UUID(str(node.get("node_id") or _NO_UUID)),
            node_id=UUID(str(node["node_id"])) if node.get("node_id") else None,
            python_version=version.python_version if version else "",
            inputs=bindings,
            outputs=outputs,
            output_types=self.output_types[self.index[name]],
            retry=NO_RETRY if retry is None else RetryPolicy(**retry),
            timeout_ms=int(node.get("timeout_ms") or NODE_TIMEOUT_MS_DEFAULT),
            memory_bytes=int(node.get("memory_bytes") or NODE_MEMORY_BYTES_DEFAULT),
            limits=node.get("limits") or {},
            kind=kind,
            phase=phase,
            needed={"any": 1, "n_of": int(join.get("count") or 1)}.get(policy),
            all_done=policy == "all_done" or phase is not Phase.MAIN,
            rescues=rescues and policy == "all" and phase is Phase.MAIN,
            condition=_expression(node.get("condition"), names),
            handled=handled or node.get("on_failure") == "continue",
            compensates=self.index[compensates] if compensates else None,
            map=_map(node),
            loop=loop,
            turn_inputs=_turn_inputs(bindings, loop, outputs) if loop else (),
            choice=_choice(node, names),
            wait=_wait(node, kind),
            sub=self.plans.get(name),
            queue_timeout_ms=node.get("queue_timeout_ms"),
            total_timeout_ms=node.get("total_timeout_ms"),
            heartbeat_timeout_ms=node.get("heartbeat_timeout_ms"),
            # Side effects that may be compensated belong to one run: such nodes are never cached.
            cache_ttl_ms=None if compensates or name in self.undone else node.get("cache_ttl_ms"),
            reuse=str(node.get("reuse") or ""),
            needs=needs_of(
                version.python_version if version else "",
                node.get("runner"),
                str(node.get("network") or ""),
            ),
            network=str(node.get("network") or ""),
            egress_hosts=tuple(node.get("egress_hosts") or ()),
            concurrency=int(node.get("concurrency") or 0),
        )

    def _bindings(
        self, node: Mapping[str, Any], edges: Iterable[Mapping[str, Any]]
    ) -> Iterable[Binding]:
        for edge in edges:
            if edge["target_input"]:
                yield self._edge(edge)
        for name, text in (node.get("parameters") or {}).items():
            yield _literal(name, text.encode())
        if node.get("variables") or node.get("template_parameters"):
            # One variable may be used at ten thousand places, which share its bytes.
            for name, text in bound_texts(self.definition, node, self.variables).items():
                raw = self.shared.setdefault(text or "", (text or "").encode())
                yield _literal(name, raw)

    def _edge(self, connection: Mapping[str, Any]) -> Binding:
        source_id, key = str(connection["source"]), str(connection["source_output"])
        source_type: object = None
        default = b""
        if not source_id:
            source, output = FROM_RUN, 0
            source_type = self.run_inputs[key]["type"]
            default = (self.run_inputs[key].get("default_json") or "").encode()
        elif connection.get("kind") == "failure":
            source, output = self.index[source_id], -1
            key = ERROR_OUTPUT
        else:
            source = self.index[source_id]
            output = self.outputs[source].index(key)
            version = self.versions.get(source_id)
            if version is not None:
                source_type = version.output_types[output]["type"]
        converts = bool(connection.get("conversion"))
        return Binding(
            name=str(connection["target_input"]),
            source=source,
            output=output,
            key=key,
            literal=default,
            conversion=str(connection.get("conversion") or ""),
            source_type_json=_json(connection.get("source_type") or source_type)
            if converts
            else "",
            absent=b"null" if connection.get("absent") == "null" else b"",
        )


def _readers(places: Sequence[Place], outputs: Iterable[RunOutput]) -> tuple[int, ...]:
    readers = [0] * len(places)
    for place in places:
        for source in {binding.source for binding in place.inputs if binding.source >= 0}:
            readers[source] += 1
    for output in outputs:
        readers[output.source] += 1
    return tuple(readers)


def _phase_of(node: Mapping[str, Any]) -> Phase:
    if node.get("compensates"):
        return Phase.COMPENSATION
    return Phase.FINALLY if node.get("phase") == "finally" else Phase.MAIN


def _expression(text: str | None, names: Iterable[str]) -> Expression | None:
    return compile_expression(text, set(names)) if text else None


def _map(node: Mapping[str, Any]) -> MapRule | None:
    rule = node.get("map")
    if not rule:
        return None
    return MapRule(
        input=str(rule["input"]),
        depth=int(rule.get("depth") or 1),
        max_in_flight=int(rule.get("max_in_flight") or IN_FLIGHT_DEFAULT),
        max_failed=int(rule.get("max_failed") or 0),
        max_failed_ratio=float(rule.get("max_failed_ratio") or 0),
    )


def _loop(node: Mapping[str, Any], names: set[str], outputs: Sequence[str]) -> LoopRule | None:
    rule = node.get("loop")
    if not rule:
        return None
    carry = {str(name): outputs.index(output) for name, output in (rule.get("carry") or {}).items()}
    return LoopRule(
        condition=compile_expression(
            rule["condition"], names | set(carry) | set(outputs) | {"turn"}
        ),
        max_turns=int(rule["max_turns"]),
        carry=carry,
        fails_at_max=rule.get("at_max") == "fail",
    )


def _turn_inputs(
    bindings: Sequence[Binding], loop: LoopRule, outputs: Sequence[str]
) -> tuple[Binding, ...]:
    """Return the inputs of turns after the first: carried values replace the given ones."""
    kept = [binding for binding in bindings if binding.name not in loop.carry]
    carried = [
        Binding(
            name=name,
            source=FROM_TURN,
            output=output,
            key=outputs[output],
            literal=b"",
            conversion="",
            source_type_json="",
        )
        for name, output in loop.carry.items()
    ]
    return (*kept, *carried)


def _choice(node: Mapping[str, Any], names: set[str]) -> ChoiceRule | None:
    rule = node.get("choice")
    if not rule:
        return None
    branches = [
        (str(each["name"]), compile_expression(each["condition"], names))
        for each in rule["branches"]
    ]
    return ChoiceRule(branches, rule.get("default") or None)


def _wait(node: Mapping[str, Any], kind: Kind) -> WaitRule | None:
    if kind not in (Kind.SIGNAL, Kind.APPROVAL):
        return None
    rule = node[kind]
    default = rule.get("default")
    return WaitRule(
        name=str(rule.get("name") or node["id"]),
        type=from_json(rule["type"]) if rule.get("type") else None,
        timeout_ms=rule.get("timeout_ms"),
        default=default.encode() if default else None,
    )


def _literal(name: str, raw: bytes) -> Binding:
    return Binding(
        name=name,
        source=FROM_LITERAL,
        output=0,
        key="",
        literal=raw,
        conversion="",
        source_type_json="",
    )


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
