"""Nodes that wait for what the cache says, and what tells two inputs apart."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from services.orchestrator.domain.cache_queue import Answer, Ask, Hit, inputs_digest
from services.orchestrator.domain.commands import CacheCommand
from services.orchestrator.domain.core import Core
from services.orchestrator.domain.options import RunOptions
from services.orchestrator.domain.plan import FROM_LITERAL, Plan
from services.orchestrator.domain.records import NO_USAGE
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.steps.attempts import Outcome
from services.orchestrator.domain.values import FilePart, FileValue, ListOutput
from tests.unit.orchestrator.graphs import plan_of
from tests.unit.orchestrator.test_core import ONE, new_core, start

SOURCE = UUID(int=5000)


def cached(plan: Plan) -> Plan:
    return replace(plan, places=tuple(replace(each, cache_ttl_ms=1000) for each in plan.places))


def asked(core: Core) -> Ask:
    [ask] = core.cache.take(9)
    return ask


def hit(core: Core) -> Answer:
    return Answer(asked(core), "d", Hit(SOURCE, (b"7",)))


def test_a_hit_completes_a_node_without_a_runner_and_its_children_go_on() -> None:
    core = new_core((ONE, 4))
    run = start(core, cached(plan_of([(0, 1)], 2)))
    assert run.records == [None, None]
    [t] = core.cache_answered([hit(core)], now=1.0)
    [copy] = t.copies
    assert (SOURCE, True, "n0") == (copy.source_id, copy.cache_hit, copy.node_id)
    assert (1, b"7") == (asked(core).slot, run.value(1, 0))
    core.cache_answered([hit(core)], now=2.0)
    assert RunStatus.COMPLETED is run.status
    assert not core.runners[ONE].in_flight
    assert all(record is not None and record.cache_hit for record in run.records)


def test_a_miss_runs_and_its_result_is_kept_once_it_is_committed() -> None:
    core = new_core((ONE, 4))
    run = start(core, cached(plan_of([], 1)))
    ask = asked(core)
    core.cache_answered([Answer(ask, "digest", None)], now=1.0)
    record = run.records[0]
    assert record is not None
    assert NodeStatus.RUNNING is record.status
    [t] = core.outcomes(ONE, [Outcome(record.id, record.token, (b"1",), NO_USAGE)], now=2.0)
    kept = [each for each in t.commands if isinstance(each, CacheCommand)]
    assert [CacheCommand(record.id, ask.node_version_id, run.tenant_id, "digest", 1000)] == kept


def test_nothing_is_kept_where_the_database_did_not_say_under_what() -> None:
    core = new_core((ONE, 4))
    run = start(core, cached(plan_of([], 1)))
    core.cache_answered([Answer(asked(core), None, None)], now=1.0)
    record = run.records[0]
    assert record is not None
    [t] = core.outcomes(ONE, [Outcome(record.id, record.token, (b"1",), NO_USAGE)], now=2.0)
    assert not [each for each in t.commands if isinstance(each, CacheCommand)]


def test_an_answer_that_comes_while_a_run_is_paused_is_asked_for_again() -> None:
    core = new_core((ONE, 4))
    run = start(core, cached(plan_of([], 1)))
    answer = hit(core)
    core.pause(run.id)
    assert [] == core.cache_answered([answer], now=1.0)
    assert [] == core.cache.take(9)
    core.resume(run.id, now=2.0)
    core.cache_answered([hit(core)], now=3.0)
    assert RunStatus.COMPLETED is run.status


def test_an_answer_for_a_run_that_is_gone_or_was_skipped_changes_nothing() -> None:
    core = new_core((ONE, 4))
    run = start(core, cached(plan_of([], 1)))
    answer = hit(core)
    core.skip_node(run.id, 0, None)
    assert [] == core.cache_answered([answer], now=1.0)
    core.forget(run.id)
    assert [] == core.cache_answered([answer], now=2.0)
    assert not core.cache.wanted
    assert not core.cache.digests


def test_a_run_that_ignores_the_cache_asks_for_nothing_that_is_there() -> None:
    core = new_core((ONE, 4))
    plan = cached(plan_of([], 1))
    run = start(core, plan)
    assert 1000 == asked(core).ttl_ms
    core.forget(run.id)
    other = replaced_options(run, ignores_cache=True)
    assert core.cache.asks(other, 0)
    assert 0 == asked(core).ttl_ms


def replaced_options(run: Run, *, ignores_cache: bool) -> Run:
    return Run(
        id=UUID(int=6000),
        plan=run.plan,
        tenant_id=run.tenant_id,
        created_by=run.created_by,
        status=RunStatus.PENDING,
        input_values=run.input_values,
        options=RunOptions(ignores_cache=ignores_cache),
    )


def digest_of(*literals: tuple[str, bytes, str], source_type_json: str = "") -> str | None:
    """Digest the literals of one place: name, text, conversion."""
    plan = plan_of([], 1)
    bindings = tuple(
        replace(
            plan.places[0].inputs[0],
            name=name,
            source=FROM_LITERAL,
            literal=text,
            conversion=conversion,
            source_type_json=source_type_json,
        )
        for name, text, conversion in literals
    )
    places = (replace(plan.places[0], inputs=bindings),)
    run = replaced_options(start(new_core(), replace(plan, places=places)), ignores_cache=False)
    return inputs_digest(run, 0)


def test_inputs_are_told_apart_by_name_text_and_conversion_and_not_by_order() -> None:
    one, other = ("a", b"1", ""), ("b", b"2", "")
    assert digest_of(one, other) == digest_of(other, one)
    different = [
        digest_of(one, other),
        digest_of(("a", b"2", ""), ("b", b"1", "")),
        digest_of(("a", b"1", "int_to_str"), other),
        digest_of(one),
        digest_of(("b", b"1", "")),
        digest_of(one, source_type_json='{"t":"int"}'),
        digest_of(("ab", b"12", "")),
        digest_of(("a", b"1.0", ""), other),
    ]
    assert len(different) == len(set(different))


def test_files_count_by_their_digests_and_one_without_makes_a_node_uncached() -> None:
    def fed_by(output: FileValue | ListOutput) -> str | None:
        run = start(new_core((ONE, 4)), plan_of([(0, 1)], 2))
        run.outputs[0] = output
        return inputs_digest(run, 1)

    def file(number: int, sha256: bytes) -> FileValue:
        return FileValue(UUID(int=number), 70_000, sha256)

    same, changed, unknown = b"\x01" * 32, b"\x02" * 32, b""
    assert fed_by(file(1, same)) == fed_by(file(2, same))
    assert fed_by(file(1, same)) != fed_by(file(1, changed))
    assert fed_by(file(1, unknown)) is None
    assert fed_by(ListOutput(((b"1",), file(1, same)))) == fed_by(
        ListOutput(((b"1",), file(3, same)))
    )
    assert fed_by(ListOutput(((b"1",), file(1, unknown)))) is None


def test_elements_of_one_file_are_told_apart() -> None:
    file = FileValue(UUID(int=1), 70_000, b"\x01" * 32)
    run = start(new_core((ONE, 4)), plan_of([(0, 1)], 2))
    found = []
    for field, index in (("result", 0), ("result", 1), ("result", None), ("other", 0)):
        run.outputs[0] = (FilePart(file, field, index),)  # type: ignore[assignment]
        found.append(inputs_digest(run, 1))
    assert None not in found
    assert 4 == len(set(found))
