"""Lists in files: what a map's elements and a list's readers are given, in memory and from rows."""

from __future__ import annotations

import itertools
import uuid
from typing import Any

import pytest

from services.orchestrator.domain.commands import AssignCommand
from services.orchestrator.domain.compile import compile_plan
from services.orchestrator.domain.core import Core
from services.orchestrator.domain.plan import Definition, NodeVersion, Plan
from services.orchestrator.domain.records import NO_USAGE
from services.orchestrator.domain.rows import RunInsert
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.values import FilePart, FileValue, NodeOutput, Spliced
from tests.unit.orchestrator.store import Store
from tests.unit.orchestrator.test_core import ONE, TENANT, new_core
from tests.unit.orchestrator.worlds import same

INT = {"t": "int"}


def plan_of(*maps: dict[str, Any] | None, answers: int = -1) -> Plan:
    """A chain n0 → n1 → …; each takes x and gives result, mapped over x where it says so."""
    size = len(maps)
    names = [f"n{at}" for at in range(size)]
    edge = {"conversion": "", "target_input": "x"}
    definition = Definition(
        workflow_id=uuid.uuid4(),
        version=1,
        nodes=[
            {"id": name, "retry": {"max_retries": 0}, **({"map": rule} if rule else {})}
            for name, rule in zip(names, maps, strict=True)
        ],
        connections=[
            {**edge, "source": "", "source_output": "x", "target": "n0"},
            *(
                {**edge, "source": a, "source_output": "result", "target": b}
                for a, b in itertools.pairwise(names)
            ),
        ],
        settings={},
        input_types=[{"name": "x", "type": INT, "required": True}],
        output_types=[{"name": "out", "node_id": names[answers], "output": "result"}],
    )
    version = NodeVersion(
        id=uuid.UUID(int=1),
        python_version="3.11",
        output_types=[{"name": "result", "type": INT}],
    )
    return compile_plan(definition, dict.fromkeys(names, version), pins_id=uuid.uuid4())


class Subject:
    """One run on one runner, with the rows that it writes."""

    def __init__(self, plan: Plan, credits_: int = 100) -> None:
        self.core: Core = new_core((ONE, credits_))
        self.store = Store()
        self.plan = plan
        self.run = Run(
            id=uuid.uuid4(),
            plan=plan,
            tenant_id=TENANT,
            created_by=TENANT,
            status=RunStatus.PENDING,
            input_values={"x": b"1"},
        )
        row = RunInsert(
            self.run.id, plan.workflow_id, TENANT, TENANT, 1, None, plan.pins_id, 0, "pending",
            "{}", None, None, "3.11", None, 1,
        )  # fmt: skip
        self.slots: dict[str, int] = {}
        self._apply(self.core.start(self.run, row, now=0.0))

    def _apply(self, transitions: list[Transition]) -> None:
        for t in transitions:
            self.store.apply(t)
            for command in t.commands:
                if isinstance(command, AssignCommand):
                    self.slots[self.run.node_id(command.slot)] = command.slot

    def given(self, node_id: str) -> Any:
        """Give what an attempt's first input is."""
        return self.run.value(self.slots[node_id], 0)

    def answer(self, node_id: str, result: NodeOutput) -> None:
        """Complete an attempt."""
        record = self.run.records[self.slots[node_id]]
        assert record is not None
        if isinstance(result, FileValue):
            self.store.files[result.file_id] = result
        outcome = Outcome(record.id, record.token, result, NO_USAGE)  # type: ignore[arg-type]
        self._apply(self.core.outcomes(ONE, [outcome], now=0.0))

    def read_again(self) -> Run:
        """Give the run as its rows say; memory is the same."""
        again = self.store.restore(self.run.id, self.plan)
        same(self.run, again)
        for slot, group in self.run.groups.items():
            assert group.elements == again.groups[slot].elements
            assert group.outputs == again.groups[slot].outputs
        return again


def file(**counts: int) -> FileValue:
    return FileValue(uuid.uuid4(), 70_000, b"h" * 32, counts)


MAP = {"input": "x"}


def test_a_map_over_a_list_in_a_file_gives_each_element_by_its_index() -> None:
    """B44, I34: the list is counted by its runner and never read here."""
    subject = Subject(plan_of(None, {**MAP, "max_in_flight": 2}, None))
    large = file(result=3)
    subject.answer("n0", large)
    assert {"n0", "n1[0]", "n1[1]"} == subject.slots.keys()
    assert FilePart(large, "result", 1) == subject.given("n1[1]")
    subject.answer("n1[0]", (b"1.0",))
    assert FilePart(large, "result", 2) == subject.given("n1[2]")
    subject.read_again()
    subject.answer("n1[2]", (b"3.0",))
    subject.answer("n1[1]", (b"2.0",))
    assert b"[1.0,2.0,3.0]" == subject.given("n2")
    subject.read_again()


def test_a_map_over_an_empty_list_in_a_file_is_over_at_once() -> None:
    """A file may hold it beside another output that is large; null counts as empty."""
    subject = Subject(plan_of(None, MAP, None))
    subject.answer("n0", file(result=0))
    assert b"[]" == subject.given("n2")
    subject.read_again()


def test_a_map_over_what_was_not_counted_fails_in_plain_words() -> None:
    subject = Subject(plan_of(None, MAP, None))
    subject.answer("n0", file(other=3))
    assert RunStatus.FAILED == subject.run.status
    assert subject.run.failure is not None
    assert "map_too_large" == subject.run.failure[1].error_type
    assert "too many to be counted" in subject.run.failure[1].message


def test_more_elements_than_a_run_may_have_are_refused_before_any_begins() -> None:
    subject = Subject(plan_of(None, MAP, None))
    subject.answer("n0", file(result=1_000_001))
    assert subject.run.failure is not None
    assert "map_too_large" == subject.run.failure[1].error_type
    assert {"n0"} == subject.slots.keys()


def test_elements_that_are_files_are_spliced_for_who_reads_their_list() -> None:
    """B44: pieces in order, texts that follow one another are one."""
    subject = Subject(plan_of(None, MAP, None))
    subject.answer("n0", (b"[0,1,2,3]",))
    one, other = file(), file()
    results: list[NodeOutput] = [(b"1",), one, other, (b'"\xc3\xa9"',)]
    for at, result in enumerate(results):
        subject.answer(f"n1[{at}]", result)
        subject.read_again()
    expected = (b"[1,", FilePart(one, "result"), b",", FilePart(other, "result"), b',"\xc3\xa9"]')
    assert Spliced(expected) == subject.given("n2")
    subject.answer("n2", (b"1",))
    assert RunStatus.COMPLETED == subject.run.status


def test_lists_of_lists_with_files_in_them_are_spliced_whole() -> None:
    subject = Subject(plan_of(None, {**MAP, "depth": 2}, None))
    subject.answer("n0", (b"[[0,1],[],[2]]",))
    one, other = file(), file()
    subject.answer("n1[0][0]", one)
    subject.answer("n1[0][1]", (b"5",))
    subject.read_again()
    subject.answer("n1[2][0]", other)
    pieces = (b"[[", FilePart(one, "result"), b",5],[],[", FilePart(other, "result"), b"]]")
    assert Spliced(pieces) == subject.given("n2")
    subject.read_again()


def test_a_map_over_elements_that_are_files_gives_each_where_it_stands() -> None:
    subject = Subject(plan_of(None, MAP, MAP, None))
    subject.answer("n0", (b"[0,1]",))
    large = file()
    subject.answer("n1[0]", large)
    subject.answer("n1[1]", (b"7",))
    assert FilePart(large, "result") == subject.given("n2[0]")
    assert b"7" == subject.given("n2[1]")
    subject.read_again()
    subject.answer("n2[0]", (b"1",))
    subject.answer("n2[1]", (b"2",))
    assert b"[1,2]" == subject.given("n3")


def test_the_inner_lists_of_a_map_may_stand_in_files_of_their_own() -> None:
    subject = Subject(plan_of(None, MAP, {**MAP, "depth": 2}, None))
    subject.answer("n0", (b"[0,1]",))
    large = file(result=2)
    subject.answer("n1[0]", large)
    subject.answer("n1[1]", (b"[8]",))
    assert FilePart(large, "result", 1) == subject.given("n2[0][1]")
    assert b"8" == subject.given("n2[1][0]")
    subject.read_again()


def test_a_map_of_depth_two_over_one_list_in_a_file_fails_in_plain_words() -> None:
    """Only whole lists are counted, not the lists within."""
    subject = Subject(plan_of(None, {**MAP, "depth": 2}, None))
    subject.answer("n0", file(result=2))
    assert subject.run.failure is not None
    assert "map_too_large" == subject.run.failure[1].error_type
    assert "only whole lists are counted" in subject.run.failure[1].message


@pytest.mark.parametrize("text", [b"[1,[2],3]", b"[[2],1]", b"[1]"])
def test_an_inner_value_that_is_no_list_fails_its_map_once(text: bytes) -> None:
    """Whatever stands before and behind it."""
    subject = Subject(plan_of(None, {**MAP, "depth": 2}, None))
    subject.answer("n0", (text,))
    for name in [name for name in subject.slots if name != "n0"]:
        subject.answer(name, (b"9",))
    assert RunStatus.FAILED == subject.run.status
    assert subject.run.failure is not None
    assert ("n1", "type_error") == (subject.run.failure[0], subject.run.failure[1].error_type)


def test_thousands_of_inner_values_that_are_no_lists_are_put_aside() -> None:
    subject = Subject(plan_of(None, {**MAP, "depth": 2, "max_failed": 3000}, None))
    subject.answer("n0", (b"[" + b"1," * 2999 + b"1]",))
    assert b"[" + b"null," * 2999 + b"null]" == subject.given("n2")


def test_a_list_with_files_in_it_is_no_answer_of_a_run() -> None:
    subject = Subject(plan_of(None, MAP))
    subject.answer("n0", (b"[0]",))
    subject.answer("n1[0]", file())
    assert RunStatus.FAILED == subject.run.status
    assert subject.run.failure is not None
    assert "output_too_large" == subject.run.failure[1].error_type
    record = subject.run.records[1]
    assert record is not None
    assert NodeStatus.FAILED == record.status
