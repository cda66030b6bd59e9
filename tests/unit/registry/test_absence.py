"""A value that is said to be certain is there whenever its target runs, whatever else happens."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from qflow.types import NONE, SCALARS, Dict, union_of

from services.registry.domain import builtins
from services.registry.domain.constructs import Branch, Choice, Join
from services.registry.domain.definition import (
    Connection,
    Definition,
    InputSpec,
    Signature,
    WorkflowNode,
    WorkflowOutput,
)
from services.registry.domain.graph import check

NODE = uuid4()
TEXTS = Dict(SCALARS["str"], SCALARS["str"])
MAYBE = union_of((TEXTS, NONE))
# Any node reads any other: what an edge lacks is then said by the edge and not refused.
NAMES = tuple(f"n{at}" for at in range(7))
SIGNATURE = Signature(
    python_version="3.11",
    inputs={f"from_{name}": InputSpec(type=MAYBE, required=True) for name in NAMES},
    outputs={"result": TEXTS},
)
BRANCHES = ("left", "right")
NULLS = tuple((f"from_{name}", "null") for name in NAMES)


@dataclass
class Run:
    """One way in which a graph may go: the rules of joins, and chance for all else."""

    definition: Definition
    draw: st.DataObject
    ended: dict[str, str] = field(default_factory=dict)  # done, skipped, failed or a branch
    ran: set[str] = field(default_factory=set)

    def go(self) -> None:
        for node in self.definition.nodes:  # they are made in an order in which they may run
            self.ended[node.id] = self._end(node) if self._runs(node) else "skipped"

    def _runs(self, node: WorkflowNode) -> bool:
        sources: dict[str, list[Connection]] = {}
        for edge in self.definition.connections:
            if edge.target == node.id:
                sources.setdefault(edge.source, []).append(edge)
        active = {name: any(map(self._active, edges)) for name, edges in sources.items()}
        broken = any(self.ended[name] == "failed" and not active[name] for name in sources)
        # What stands on a branch waits for it, whatever else feeds it.
        broken |= any(
            not active[name] and all(edge.kind == "branch" for edge in edges)
            for name, edges in sources.items()
        )
        # … and what stands behind failures for one of them.
        behind = [
            active[name]
            for name, edges in sources.items()
            if all(edge.kind == "failure" for edge in edges)
        ]
        broken |= bool(behind) and not any(behind)
        policy = node.join.policy if node.join else "all"
        if not sources or policy == "all_done":
            return True
        if policy == "all":
            return any(active.values()) and not broken
        return sum(active.values()) >= (node.join.count or 1 if node.join else 1)

    def _active(self, edge: Connection) -> bool:
        end = self.ended[edge.source]
        if edge.kind == "failure":
            return end == "failed"
        if edge.kind == "branch":
            return end == edge.branch
        return end not in ("skipped", "failed")

    def _end(self, node: WorkflowNode) -> str:
        if node.condition and not self.draw.draw(st.booleans()):
            return "skipped"
        self.ran.add(node.id)
        if isinstance(node.construct, Choice):
            default = node.construct.default
            return self.draw.draw(st.sampled_from([*BRANCHES, default or "none"]))
        handled = node.continues or any(
            edge.kind == "failure" and edge.source == node.id
            for edge in self.definition.connections
        )
        # Whose failure is not handled stops the run, and nothing after it is of interest.
        return "failed" if handled and self.draw.draw(st.booleans()) else "done"


@st.composite
def graphs(draw: st.DrawFn) -> Definition:
    nodes: list[WorkflowNode] = []
    edges: list[Connection] = []
    for at, name in enumerate(NAMES[: draw(st.integers(2, 7))]):
        found = [
            edge
            for source in nodes[max(0, at - 3) :]
            for edge in draw(st.lists(_edges(source, name), max_size=2, unique=True))
        ]
        edges += found
        nodes.append(_node(draw, name, len({edge.source for edge in found}), found))
    return Definition(nodes=tuple(nodes), connections=tuple(edges))


def _edges(source: WorkflowNode, target: str) -> st.SearchStrategy[Connection]:
    bare = {"source": source.id, "target": target}
    empty = bare | {"source_output": "", "target_input": ""}
    if isinstance(source.construct, Choice):
        ways = dict.fromkeys((*BRANCHES, source.construct.default or "left"))
        return st.sampled_from([_connection(empty, "branch", each) for each in ways])
    port = f"from_{source.id}"
    value = bare | {"source_output": "result", "target_input": port}
    error = bare | {"source_output": "error", "target_input": port}
    plain = [_connection(empty, "order"), _connection(empty, "failure"), _connection(value, "")]
    # Two edges would feed one input: either of them may.
    return st.sampled_from([*plain, _connection(error, "failure")][: 4 if target > "n3" else 3])


def _connection(ends: dict[str, str], kind: str, branch: str = "") -> Connection:
    return Connection(
        source=ends["source"],
        source_output=ends["source_output"],
        target=ends["target"],
        target_input=ends["target_input"],
        kind=kind,
        branch=branch,
    )


def _node(draw: st.DrawFn, name: str, sources: int, edges: list[Connection]) -> WorkflowNode:
    join = None
    if sources:
        policy = draw(st.sampled_from(["all", "all", "any", "n_of", "all_done"]))
        count = draw(st.integers(1, sources)) if policy == "n_of" else 0
        join = Join(policy=policy, count=count)
    if draw(st.integers(0, 3)) == 0 and all(not edge.is_value for edge in edges):
        branches = tuple(Branch(each, "true") for each in BRANCHES)
        choice: UUID = builtins.CHOICE.id
        default = draw(st.sampled_from([None, "left", "rest"]))
        construct = Choice(branches=branches, default=default)
        return WorkflowNode(id=name, node_id=choice, construct=construct, join=join)
    fed = {edge.target_input for edge in edges}
    return WorkflowNode(
        id=name,
        node_id=NODE,
        join=join,
        literals=tuple(each for each in NULLS if each[0] not in fed),
        condition=draw(st.sampled_from(["", "", "true"])),
        on_failure=draw(st.sampled_from(["", "continue"])),
    )


@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.data())
def test_what_is_certain_is_there(definition: Definition, data: st.DataObject) -> None:
    checked = check(definition, {(NODE, 0): SIGNATURE})
    if any(each.code == "TWO_WRITERS" for each in checked.findings):
        return
    choices = {e.id for e in checked.definition.nodes if isinstance(e.construct, Choice)}
    assert [] == [each for each in checked.findings if each.severity == "error"]
    for _ in range(3):
        run = Run(checked.definition, data)
        run.go()
        for edge in checked.definition.connections:
            if edge.is_value and not edge.absent and edge.target in run.ran:
                wanted = {"failed"} if edge.kind == "failure" else {"done"}
                assert run.ended[edge.source] in wanted, (edge, run.ended)
        for output in checked.definition.outputs:
            if output.type != MAYBE and output.node not in choices:
                assert run.ended[output.node] == "done", (output, run.ended)


@pytest.mark.parametrize(
    ("default", "branches", "policy", "absent"),
    [
        (None, ("left", "left"), "all", ["", ""]),
        (None, ("left", "right"), "all", ["null", "null"]),
        (None, ("left", "right"), "any", ["null", "null"]),
    ],
)
def test_what_is_on_one_branch_is_certain_and_on_two_is_not(
    default: str | None, branches: tuple[str, str], policy: str, absent: list[str]
) -> None:
    """The property above holds where nothing is certain, too: this sees that something is."""
    found = check(_diamond(default, branches, policy), {(NODE, 0): SIGNATURE}).definition
    assert absent == [each.absent for each in found.connections if each.is_value]


@pytest.mark.parametrize(
    ("default", "branches", "policy", "optional"),
    [
        ("left", ("left", "right"), "any", False),
        ("left", ("left", "right"), "all", False),
        (None, ("left", "right"), "any", True),
        ("rest", ("left", "right"), "any", True),
        ("left", ("left", "left"), "any", True),
    ],
)
def test_where_all_branches_meet_again_a_run_has_a_value(
    default: str | None, branches: tuple[str, str], policy: str, *, optional: bool
) -> None:
    shown = replace(
        _diamond(default, branches, policy),
        outputs=(WorkflowOutput(name="out", node="n3", output="result"),),
    )
    (output,) = check(shown, {(NODE, 0): SIGNATURE}).definition.outputs
    assert (MAYBE if optional else TEXTS) == output.type


def _diamond(default: str | None, branches: tuple[str, str], policy: str) -> Definition:
    """A choice, a node on each of two branches, and a node that reads both."""
    ways = tuple(Branch(each, "true") for each in BRANCHES)
    choice = Choice(branches=ways, default=default)
    nodes = [WorkflowNode(id="n0", node_id=builtins.CHOICE.id, construct=choice)]
    nodes += [WorkflowNode(id=name, node_id=NODE, literals=NULLS) for name in ("n1", "n2")]
    join = Join(policy=policy)
    rest = (NULLS[0], *NULLS[3:])
    nodes.append(WorkflowNode(id="n3", node_id=NODE, literals=rest, join=join))
    edges = (
        _connection(_bare("n0", "n1"), "branch", branches[0]),
        _connection(_bare("n0", "n2"), "branch", branches[1]),
        _connection(_bare("n1", "n3") | _value("n1"), ""),
        _connection(_bare("n2", "n3") | _value("n2"), ""),
    )
    return Definition(nodes=tuple(nodes), connections=edges)


def _bare(source: str, target: str) -> dict[str, str]:
    return {"source": source, "target": target, "source_output": "", "target_input": ""}


def _value(source: str) -> dict[str, str]:
    return {"source_output": "result", "target_input": f"from_{source}"}


@pytest.mark.parametrize("depth", [3, 300])
def test_choices_within_choices_meet_from_within_and_soon(depth: int) -> None:
    """c0 leads to leaf 0 or to c1, which leads to leaf 1 or to c2; all leaves meet."""
    ways = tuple(Branch(each, "true") for each in BRANCHES)
    choice = Choice(branches=ways, default="right")
    nodes, edges = [], []
    for at in range(depth):
        nodes += [
            WorkflowNode(id=f"c{at}", node_id=builtins.CHOICE.id, construct=choice),
            WorkflowNode(id=f"leaf{at}", node_id=NODE, literals=NULLS),
        ]
        inner = f"c{at + 1}" if at + 1 < depth else "last"
        edges += [
            _connection(_bare(f"c{at}", f"leaf{at}"), "branch", "left"),
            _connection(_bare(f"c{at}", inner), "branch", "right"),
            _connection(_bare(f"leaf{at}", "end"), "order"),
        ]
    nodes += [WorkflowNode(id=name, node_id=NODE, literals=NULLS) for name in ("last", "end")]
    edges.append(_connection(_bare("last", "end"), "order"))
    definition = Definition(nodes=tuple(nodes), connections=tuple(edges))
    begun = time.thread_time()
    checked = check(definition, {(NODE, 0): SIGNATURE})
    assert time.thread_time() - begun < 2.0
    outputs = {each.node: each.type for each in checked.definition.outputs}
    assert TEXTS == outputs["end"]
