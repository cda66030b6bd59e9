"""The desk: windows, tokens, and results that wait for their acknowledgement."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

import pytest

from services.runner.domain.attempts import AttemptRequest, FileReference
from services.runner.domain.frames import (
    Assignment,
    Definition,
    Incoming,
    Kill,
    Owned,
    Value,
    ValuesNotGiven,
)
from services.runner.domain.limits import NOTHING_ASKED, Limits
from services.runner.domain.outcome import ErrorType, Outcome, Usage
from services.runner.domain.pooling import WarmKey
from services.runner.usecases.attempt import CANCELLED, Attempt
from services.runner.usecases.attempts import Attempts
from services.runner.usecases.desk import Desk
from services.runner.usecases.membership import Membership
from services.runner.usecases.session import Session

REF = UUID(int=1)
OTHER = UUID(int=2)


class ScriptedAttempts:
    """Attempts that end when the test says so."""

    def __init__(self, *, plain: bool) -> None:
        self.plain = plain  # whether they need no task of the desk's
        self.begun: dict[int, asyncio.Future[Outcome]] = {}
        self.told: list[tuple[int, str]] = []
        self.alone: list[tuple[int, bool]] = []

    def begin(
        self, attempt: Attempt, over: Callable[[Outcome], None], left: Callable[[], None]
    ) -> bool:
        if not self.plain:
            return False
        self.alone.append((attempt.request.token, attempt.alone))
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda ended: over(ended.result()))
        future.add_done_callback(lambda _: left())
        self.begun[attempt.request.token] = future
        return True

    async def run(self, attempt: Attempt) -> Outcome:
        self.alone.append((attempt.request.token, attempt.alone))
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.begun[attempt.request.token] = future
        return await future

    async def key_of(self, request: AttemptRequest) -> WarmKey:
        return WarmKey(
            request.tenant_id,
            request.node_version_id,
            "",
            Limits(),
            concurrency=request.concurrency,
        )

    def tell_to_end(self, attempt: Attempt, why: str, *, grace_s: float) -> None:
        attempt.grace_s = grace_s
        attempt.told = attempt.told or why
        self.told.append((attempt.request.token, why))
        if attempt.task is not None:
            attempt.task.cancel()
        elif not self.begun[attempt.request.token].done():
            self.begun[attempt.request.token].set_result(CANCELLED)


class HeldLease:
    held = True


async def no_values(attempt_ref: UUID, token: int, count: int) -> Sequence[Value]:
    raise AssertionError


class Source:
    """An orchestrator's stream that gives inputs, or is lost while it does."""

    def __init__(self, *given: bytes | Exception) -> None:
        self.given = list(given)
        self.asked = 0
        self.exhausted = asyncio.Event()

    async def __call__(self, attempt_ref: UUID, token: int, count: int) -> Sequence[Value]:
        assert (REF, 7) == (attempt_ref, token)
        self.asked += 1
        await asyncio.sleep(0)
        if len(self.given) <= 1:
            self.exhausted.set()
        given = self.given.pop(0) if len(self.given) > 1 else self.given[0]
        if isinstance(given, Exception):
            raise given
        return [given] * count


LOST = ValuesNotGiven("UNAVAILABLE: Socket closed")
SUPERSEDED = ValuesNotGiven("ABORTED: the attempt is no longer the current one")


async def as_file(request: AttemptRequest, outputs: Sequence[tuple[str, bytes]]) -> FileReference:
    return FileReference(uuid.uuid4(), sum(len(text) for _, text in outputs), "00", "")


@pytest.fixture(params=[True, False], ids=["plain", "task"])
def attempts(request: pytest.FixtureRequest) -> ScriptedAttempts:
    return ScriptedAttempts(plain=request.param)


@pytest.fixture
def desk(attempts: ScriptedAttempts) -> Desk:
    return Desk(
        cast("Attempts", attempts),
        cast("Membership", HeldLease()),
        slots=2,
        store=as_file,
        pythons=["3.11"],
    )


DEFINITION = Definition(
    number=1,
    node_version_id=uuid.uuid4(),
    tenant_id=uuid.uuid4(),
    node_id="a",
    inputs=[("x", "")],
    outputs=["result"],
    timeout_s=1,
    limits=NOTHING_ASKED,
    python_version="3.11",
)


def assign(ref: UUID, token: int, **changes: Any) -> Incoming:
    assignment = Assignment(
        attempt_ref=ref,
        token=token,
        definition=changes.get("definition", 1),
        execution_id=uuid.uuid4(),
        attempt=1,
        values=[b"1"],
        pull=changes.get("pull", False),
        timeout_s=changes.get("timeout_s", 0),
    )
    return Incoming(definitions=[DEFINITION], assignments=[assignment])


def assign_together(token: int) -> Incoming:
    """One of several calls that may be in an interpreter at once."""
    incoming = assign(UUID(int=token), token)
    return replace(incoming, definitions=[replace(DEFINITION, concurrency=4)])


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def sent(session: Session) -> list[int]:
    return [result.token for result in session.take_outgoing().results]


async def test_a_result_is_offered_until_it_is_acknowledged(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    """Rule 7."""
    first = desk.open_session(no_values)
    desk.take(first, assign(REF, 7))
    await settle()
    attempts.begun[7].set_result(Outcome(outputs=[("result", b"2")]))
    await settle()
    assert [7] == sent(first)
    desk.close_session(first)
    second = desk.open_session(no_values)
    assert [7] == sent(second)
    assert [(REF, 7)] == desk.inventory()[1]
    desk.take(second, Incoming(acks=[(REF, 7)]))
    desk.close_session(second)
    assert [] == sent(desk.open_session(no_values))


async def test_the_same_assignment_again_runs_once(desk: Desk, attempts: ScriptedAttempts) -> None:
    session = desk.open_session(no_values)
    desk.take(session, assign(REF, 7))
    desk.take(session, assign(REF, 7))
    await settle()
    assert [7] == list(attempts.begun)
    attempts.begun[7].set_result(Outcome())
    await settle()
    desk.take(session, assign(REF, 7))
    assert [7, 7] == sent(session)


async def test_what_another_orchestrator_has_settled_is_not_run_again_for_one_that_stood_still(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    """F7, I10: its last word, said before it stood still, may come after the other's."""
    stopped = desk.open_session(no_values)
    stopped.member = "a"
    other = desk.open_session(no_values)
    other.member = "b"
    desk.take(other, assign(REF, 7))
    await settle()
    attempts.begun.pop(7).set_result(Outcome())
    await settle()
    desk.take(other, Incoming(acks=[(REF, 7)]))
    desk.take(stopped, assign(REF, 7))
    await settle()
    assert {} == attempts.begun
    assert ["settled"] == [each.reason for each in stopped.take_outgoing().declines]
    desk.take(stopped, assign(REF, 8))
    await settle()
    assert [8] == list(attempts.begun)


async def test_what_a_frame_lets_begin_goes_before_what_it_acknowledges(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    """Whichever attempt it is: also the next one of the very node whose result is committed."""
    session = desk.open_session(no_values)
    desk.take(session, assign(REF, 7))
    await settle()
    attempts.begun[7].set_result(Outcome())
    await settle()
    kept_then: list[tuple[UUID, int]] = []
    begin = desk._begin

    def noted(attempt: Attempt, definition: Definition, assignment: Assignment) -> bool:
        kept_then.extend(desk.inventory()[1])
        return begin(attempt, definition, assignment)

    desk._begin = noted  # type: ignore[method-assign]
    desk.take(session, replace(assign(REF, 8), acks=[(REF, 7)]))
    await settle()
    assert [(REF, 7)] == kept_then, "it was begun first"
    assert ([(REF, 8)], []) == desk.inventory()
    attempts.begun[8].set_result(Outcome())
    await settle()
    assert [(REF, 8)] == desk.inventory()[1]


async def test_a_higher_token_ends_the_attempt_before_it(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    """I10."""
    session = desk.open_session(no_values)
    desk.take(session, assign(REF, 7))
    await settle()
    desk.take(session, assign(REF, 8))
    await settle()
    assert [(7, "killed")] == attempts.told
    attempts.begun[8].set_result(Outcome())
    await settle()
    assert [8] == sent(session)
    assert 0 == session.running


async def test_what_is_over_the_grant_is_declined(desk: Desk) -> None:
    session = desk.open_session(no_values)
    assert (2, 1) == session.outgoing.grant
    for token in (1, 2, 3):
        desk.take(session, assign(UUID(int=token), token))
    declined = session.take_outgoing().declines
    assert [(3, "over_grant")] == [(each.token, each.reason) for each in declined]
    desk.abandon_all()


async def test_calls_that_meet_are_granted_beyond_the_slots_while_they_come(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    session = desk.open_session(no_values)
    granted = [session.credits]
    for token in (1, 2, 3, 4):
        desk.take(session, assign_together(token))
        await settle()
        granted.append(session.credits)
    # One slot has four seats: three more than it, and no seat that nobody would take.
    assert [2, 3, 5, 5, 5] == granted
    assert [1, 2, 3, 4] == list(attempts.begun)
    for each in attempts.begun.values():
        each.set_result(Outcome())
    await settle()
    assert 2 == session.credits


async def test_what_ended_with_another_is_made_again_alone_and_told_once(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    session = desk.open_session(no_values)
    for token in (1, 2):
        desk.take(session, assign_together(token))
    await settle()
    for each in list(attempts.begun.values()):
        each.set_result(Outcome(again=True))
    await settle()
    assert [] == sent(session)
    assert [(1, False), (2, False), (1, True), (2, True)] == attempts.alone
    for each in attempts.begun.values():
        each.set_result(Outcome())
    await settle()
    assert [1, 2] == sorted(sent(session))
    assert {"completed": 2} == dict(desk.ended)


async def test_what_is_killed_in_the_line_is_answered_at_once_and_never_begins(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    session = desk.open_session(no_values)
    session.ceiling = 9
    for token in (1, 2, 3, 4, 5):
        desk.take(session, assign(UUID(int=token), token))
    await settle()
    assert [1, 2] == list(attempts.begun)
    desk.take(session, Incoming(kills=[Kill(UUID(int=3), 3, 1.0)]))
    desk.take(session, Incoming(superseded=[(UUID(int=4), 4)]))
    [answer] = session.take_outgoing().results
    assert (3, True) == (answer.token, answer.killed)
    attempts.begun[1].set_result(Outcome())
    await settle()
    assert [1, 2, 5] == list(attempts.begun)
    assert ([(UUID(int=2), 2), (UUID(int=5), 5)], 2) == (desk.inventory()[0], session.running)
    desk.abandon_all()


async def test_a_lost_lease_leaves_no_slot_taken(desk: Desk, attempts: ScriptedAttempts) -> None:
    """Whether a call works, is about to begin, or stands in the line."""
    session = desk.open_session(no_values)
    session.ceiling = 9
    desk.take(session, assign(UUID(int=1), 1))
    await settle()
    for token in (2, 3):
        desk.take(session, assign(UUID(int=token), token))
    desk.abandon_all()
    await settle()
    begun = [1, 2] if attempts.plain else [1]
    assert begun == list(attempts.begun)
    for token in (4, 5):
        desk.take(session, assign(UUID(int=token), token))
    await settle()
    assert [*begun, 4, 5] == list(attempts.begun)
    assert [] == sent(session)
    desk.abandon_all()


async def test_slots_are_shared_by_demand_and_nobody_gets_none(desk: Desk) -> None:
    first = desk.open_session(no_values)
    second = desk.open_session(no_values)
    assert [1, 1] == [first.credits, second.credits]
    desk.take(first, Incoming(demand=100))
    assert [1, 1] == [first.credits, second.credits]
    desk.close_session(second)
    assert 2 == first.credits


async def test_a_kill_is_answered_even_when_there_is_nothing_to_kill(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    session = desk.open_session(no_values)
    desk.take(session, Incoming(kills=[Kill(OTHER, 3, 0.0)]))
    [answer] = session.take_outgoing().results
    assert (OTHER, 3, True) == (answer.attempt_ref, answer.token, answer.killed)
    desk.take(session, assign(REF, 7))
    await settle()
    desk.take(session, Incoming(kills=[Kill(REF, 7, 0.0)]))
    await settle()
    [answer] = session.take_outgoing().results
    assert (REF, 7, True) == (answer.attempt_ref, answer.token, answer.killed)


async def test_an_attempt_begins_once_the_one_before_it_is_over(
    desk: Desk, attempts: ScriptedAttempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I11, world 705490: an interpreter takes a moment to end, and there were two meanwhile."""
    told: list[Attempt] = []
    monkeypatch.setattr(attempts, "tell_to_end", lambda attempt, *_, **__: told.append(attempt))
    session = desk.open_session(no_values)
    desk.take(session, assign(REF, 7))
    await settle()
    desk.take(session, assign(REF, 8))
    desk.take(session, assign(REF, 9))
    await settle()
    assert ([7], [7]) == ([each.request.token for each in told], list(attempts.begun))
    attempts.begun[7].set_result(Outcome())
    await settle()
    assert [7, 9] == list(attempts.begun)
    attempts.begun[9].set_result(Outcome())
    await settle()
    assert [9] == sent(session)
    assert 0 == session.running


async def test_what_is_superseded_is_ended_and_never_answered(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    session = desk.open_session(no_values)
    desk.take(session, assign(REF, 7))
    await settle()
    desk.take(session, Incoming(superseded=[(REF, 7)]))
    await settle()
    assert [(7, "killed")] == attempts.told
    assert [] == sent(session)
    assert ([], []) == desk.inventory()


async def test_an_attempt_outlives_its_stream_and_counts_for_the_one_that_says_it_is_its_own(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    first = desk.open_session(no_values)
    desk.take(first, assign(REF, 7))
    await settle()
    desk.close_session(first)
    second = desk.open_session(no_values)
    second.member = "second"
    assert 0 == second.running
    desk.take(second, Incoming(owners=[Owned(REF, 7, "second")]))
    assert 1 == second.running
    attempts.begun[7].set_result(Outcome())
    await settle()
    assert [7] == sent(second)
    assert 0 == second.running


async def test_a_result_goes_to_the_owner_that_another_orchestrator_names(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    """I10, I13: whether it is still running when its run moves, or finished and sent in vain."""
    first, second = desk.open_session(no_values), desk.open_session(no_values)
    first.member, second.member = "first", "second"
    for ref, token in ((REF, 7), (OTHER, 8)):
        desk.take(first, assign(ref, token))
    await settle()
    attempts.begun[8].set_result(Outcome())
    await settle()
    assert [8] == sent(first)
    desk.take(first, Incoming(owners=[Owned(REF, 7, "second"), Owned(OTHER, 8, "second")]))
    assert [8] == sent(second)
    attempts.begun[7].set_result(Outcome())
    await settle()
    assert ([], [7]) == (sent(first), sent(second))
    assert (0, 0) == (first.running, second.running)


async def test_a_result_that_comes_between_greeting_and_welcome_is_not_lost(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    """F7: its owner hangs and holds its stream; whoever took the run over is told all the same."""
    hanging = desk.open_session(no_values)
    hanging.member = "hanging"
    desk.take(hanging, assign(REF, 7))
    await settle()
    later = desk.open_session(no_values)
    assert [] == sent(later)
    attempts.begun[7].set_result(Outcome())
    await settle()
    later.member = "later"
    desk.take(later, Incoming(owners=[Owned(REF, 7, "later")]))
    assert [7] == sent(later)
    desk.take(later, Incoming(owners=[Owned(REF, 7, "later")]))
    assert [] == sent(later)


async def test_what_only_a_stream_that_is_lost_was_told_is_offered_to_the_others(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    first, second = desk.open_session(no_values), desk.open_session(no_values)
    desk.take(first, assign(REF, 7))
    await settle()
    attempts.begun[7].set_result(Outcome())
    await settle()
    assert ([7], []) == (sent(first), sent(second))
    desk.close_session(first)
    assert [7] == sent(second)


async def test_a_large_result_goes_to_a_file(desk: Desk, attempts: ScriptedAttempts) -> None:
    session = desk.open_session(no_values)
    desk.take(session, assign(REF, 7))
    await settle()
    attempts.begun[7].set_result(Outcome(outputs=[("result", b"1" * 70_000)]))
    await settle()
    [finished] = session.take_outgoing().results
    assert finished.file is not None
    assert 70_000 == finished.file.size_bytes


async def test_short_calls_widen_the_window(desk: Desk, attempts: ScriptedAttempts) -> None:
    session = desk.open_session(no_values)
    for token in range(1, 80):
        desk.take(session, assign(UUID(int=token), token))
        await settle()
        attempts.begun[token].set_result(Outcome(usage=Usage(wall_us=5)))
        await settle()
    assert 64 == session.credits


async def test_a_draining_desk_takes_nothing_and_waits_for_what_runs(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    """F8."""
    session = desk.open_session(no_values)
    desk.take(session, assign(REF, 7))
    await settle()
    draining = asyncio.create_task(desk.drain(5))
    await settle()
    assert 0 == session.credits
    desk.take(session, assign(OTHER, 8))
    outgoing = session.take_outgoing()
    assert ["draining"] == [each.reason for each in outgoing.declines]
    attempts.begun[7].set_result(Outcome())
    await settle()
    assert not draining.done()
    desk.take(session, Incoming(acks=[(REF, 7)]))
    await draining


def inputs_of(desk: Desk, ref: UUID) -> list[object]:
    return [given.value for given in desk._running[ref].request.inputs]


async def test_inputs_are_pulled_again_from_the_stream_that_comes_after_a_lost_one(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    """F2, rule 7: an orchestrator dies while it gives them."""
    dies, comes = Source(LOST), Source(b"5")
    first = desk.open_session(dies)
    desk.take(first, assign(REF, 7, pull=True))
    await dies.exhausted.wait()
    desk.close_session(first)
    await settle()
    assert [(REF, 7)] == desk.inventory()[0]
    second = desk.open_session(comes)
    await comes.exhausted.wait()
    await settle()
    assert [b"5"] == inputs_of(desk, REF)
    attempts.begun[7].set_result(Outcome(outputs=[("result", b"6")]))
    await settle()
    [result] = second.take_outgoing().results
    assert result.outcome.error is None


async def test_inputs_are_asked_for_again_while_the_orchestrator_loads_the_run(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    source = Source(SUPERSEDED, b"5")
    session = desk.open_session(source)
    desk.take(session, assign(REF, 7, pull=True))
    await source.exhausted.wait()
    await settle()
    assert [b"5"] == inputs_of(desk, REF)
    desk.take(session, Incoming(kills=[Kill(REF, 7, 0.0)]))
    await settle()


async def test_another_orchestrator_is_asked_when_the_one_that_assigned_is_silent(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    lost, other = Source(LOST), Source(b"5")
    first = desk.open_session(lost)
    desk.open_session(other)
    desk.take(first, assign(REF, 7, pull=True))
    await other.exhausted.wait()
    await settle()
    assert (1, 1, [7]) == (lost.asked, other.asked, list(attempts.begun))
    desk.abandon_all()


@pytest.mark.parametrize("word", ["killed", "superseded", "lease lost"])
async def test_whatever_ends_an_attempt_ends_its_waiting_for_inputs(
    word: str, desk: Desk, attempts: ScriptedAttempts
) -> None:
    source = Source(LOST)
    session = desk.open_session(source)
    desk.take(session, assign(REF, 7, pull=True))
    await source.exhausted.wait()
    if word == "killed":
        desk.take(session, Incoming(kills=[Kill(REF, 7, 0.0)]))
    elif word == "superseded":
        desk.take(session, Incoming(superseded=[(REF, 7)]))
    else:
        desk.abandon_all()
    await settle()
    assert ([7] if word == "killed" else []) == sent(session)
    assert not desk.busy()
    assert 0 == session.running
    assert {} == attempts.begun


async def test_an_attempt_whose_inputs_nobody_gives_in_its_time_is_handed_back(
    desk: Desk, attempts: ScriptedAttempts
) -> None:
    """Rule 7: it has not failed, and it holds no place for ever."""
    source = Source(LOST)
    session = desk.open_session(source)
    session.take_outgoing()
    desk.take(session, assign(REF, 7, pull=True, timeout_s=0.01))
    await session.ready.wait()
    outgoing = session.take_outgoing()
    assert [(7, "inputs_missing")] == [(each.token, each.reason) for each in outgoing.declines]
    assert [] == outgoing.results
    assert ([], []) == desk.inventory()
    assert {} == attempts.begun


@pytest.mark.parametrize("word", ["killed", "superseded"])
async def test_an_attempt_that_is_ended_before_its_first_step_frees_its_place(
    word: str, desk: Desk, attempts: ScriptedAttempts
) -> None:
    session = desk.open_session(no_values)
    desk.take(session, assign(REF, 7))
    if word == "killed":
        desk.take(session, Incoming(kills=[Kill(REF, 7, 1.0)]))
    else:
        desk.take(session, Incoming(superseded=[(REF, 7)]))
    await settle()
    answered = session.take_outgoing().results
    expected = [(7, True)] if word == "killed" else []
    assert expected == [(each.token, each.killed) for each in answered]
    assert not desk.busy()
    assert 0 == session.running
    assert ([7] if attempts.plain else []) == list(attempts.begun)


@pytest.mark.parametrize("when", ["before its first step", "later"])
@pytest.mark.parametrize("word", ["killed", "superseded", "lease lost"])
async def test_whatever_ends_an_attempt_ends_the_storing_of_its_result(
    when: str, word: str, attempts: ScriptedAttempts
) -> None:
    storing = asyncio.Event()

    async def store(*_: object) -> FileReference:
        storing.set()
        await asyncio.Event().wait()
        raise AssertionError

    desk = Desk(
        cast("Attempts", attempts),
        cast("Membership", HeldLease()),
        slots=1,
        store=store,
        pythons=["3.11"],
    )
    session = desk.open_session(no_values)
    desk.take(session, assign(REF, 7))
    await settle()
    attempts.begun[7].set_result(Outcome(outputs=[("result", b"1" * 100_000)]))
    if when == "later":
        await storing.wait()
    else:
        await asyncio.sleep(0)
    if word == "killed":
        desk.take(session, Incoming(kills=[Kill(REF, 7, 1.0)]))
    elif word == "superseded":
        desk.take(session, Incoming(superseded=[(REF, 7)]))
    else:
        desk.abandon_all()
    await settle()
    answered = [(each.token, each.killed) for each in session.take_outgoing().results]
    assert ([(7, True)] if word == "killed" else []) == answered
    assert (False, 0) == (desk.busy(), session.running)
    desk.take(session, assign(OTHER, 8))
    await settle()
    assert 8 in attempts.begun, "its slot is free"
    desk.abandon_all()


async def test_what_cannot_be_begun_is_answered_and_frees_its_slot(
    desk: Desk, attempts: ScriptedAttempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bool:
        raise ValueError

    monkeypatch.setattr(attempts, "begin" if attempts.plain else "run", broken)
    session = desk.open_session(no_values)
    for token in (1, 2, 3):
        session.ceiling = 9
        desk.take(session, assign(UUID(int=token), token))
    await settle()
    errors = [each.outcome.error for each in session.take_outgoing().results]
    assert [ErrorType.ENVIRONMENT] * 3 == [each.type for each in errors if each is not None]
    assert not desk.busy()
