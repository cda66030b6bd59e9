"""Bugs planted on purpose: each is one mistake that somebody could make in the engine.

A simulation that finds them is one whose silence means something.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final
from unittest.mock import patch
from uuid import UUID

from services.orchestrator.domain import cache_queue, ends, groups, planner, routes, stopping, waits
from services.orchestrator.domain import restore as restoring
from services.orchestrator.domain.commands import AckCommand
from services.orchestrator.domain.core import Core
from services.orchestrator.domain.dispatch import Dispatch
from services.orchestrator.domain.effects import Effects
from services.orchestrator.domain.ledger import Budget, Ledger
from services.orchestrator.domain.limits import Demand, Lane, Limit, Limits
from services.orchestrator.domain.out import Out
from services.orchestrator.domain.records import NO_USAGE, Usage
from services.orchestrator.domain.state import Run
from services.orchestrator.domain.status import NodeStatus, RunStatus
from services.orchestrator.domain.steps import attempts
from services.orchestrator.domain.steps.attempts import Outcome
from services.orchestrator.domain.transition import Transition
from services.orchestrator.domain.values import Value
from services.orchestrator.engine.engine import Engine
from services.orchestrator.engine.journal import Journal
from services.orchestrator.engine.journal_queue import JournalQueue
from services.orchestrator.engine.member import Member
from services.orchestrator.storage import cached_results, quota_usage, recovery

Bug = Callable[[], Any]


def token_stays_when_stopped() -> Any:
    """A stop does not advance the tokens of what runs, so what that still gives is taken."""
    original = stopping.stop

    def stop(run: Run, t: Transition, *given: Any, **named: Any) -> None:
        original(run, t, *given, **named)
        for record in run.records:
            if record is not None and record.killing is not None and record.id in t.changes:
                record.token = record.killing
                t.changes[record.id] = t.changes[record.id]._replace(new_token=record.killing)

    return patch.object(stopping, "stop", stop)


def ack_before_commit() -> Any:
    """A runner is told that its result is safe while the result waits in the journal."""
    original = Engine._apply

    def apply(self: Engine, transitions: Any) -> None:
        taken = list(transitions)
        for t in taken:
            for command in t.commands:
                if isinstance(command, AckCommand):
                    self._tell(command.runner, command)
        original(self, taken)

    return patch.object(Engine, "_apply", apply)


def successor_without_all_parents() -> Any:
    """A place is ready as soon as all but one of its parents are done."""
    original = ends.place_over

    def place_over(run: Run, place: int, fx: Effects, *given: Any, **named: Any) -> None:
        original(run, place, fx, *given, **named)
        for child in run.plan.children[place]:
            if run.remaining[child] == 1:
                run.remaining[child] = 0
                fx.todo.append(child)

    users = [each for each in (ends, routes) if hasattr(each, "place_over")]
    stack = ExitStack()
    for each in users:
        stack.enter_context(patch.object(each, "place_over", place_over))
    return stack


def retry_not_counted() -> Any:
    """A failed attempt is tried again without being counted."""
    original = planner.fail

    def fail(run: Run, place: int, t: Transition, *given: Any, **named: Any) -> None:
        original(run, place, t, *given, **named)
        record = run.records[place]
        if record is not None and record.status is NodeStatus.RETRYING:
            record.retry_count -= 1
            changed = t.changes[record.id]
            t.changes[record.id] = changed._replace(retry_count=record.retry_count)

    return patch.object(planner, "fail", fail)


def result_of_another_taken() -> Any:
    """Whoever answers is believed: neither the runner nor the token is looked at."""
    original = Core._take_outcome

    def take(self: Core, runner_id: UUID, told: Outcome, run: Run, slot: int, out: Out) -> None:
        record = run.records[slot]
        if record and record.status is NodeStatus.RUNNING and record.killing is None:
            assert record.runner is not None
            runner_id, told = record.runner, told._replace(token=record.token)
        original(self, runner_id, told, run, slot, out)

    return patch.object(Core, "_take_outcome", take)


def timers_forgotten() -> Any:
    """Whoever takes a run over does not set its timers."""
    original = Core.adopt

    def adopt(self: Core, run: Run, **given: Any) -> None:
        with patch.object(self.timers, "set", lambda *_: None):
            original(self, run, **given)

    return patch.object(Core, "adopt", adopt)


def transitions_swapped() -> Any:
    """Of two transitions that wait, the later is written first."""
    original = JournalQueue.take

    def take(self: JournalQueue) -> list[Transition]:
        if len(self._queue) > 1:
            self._queue.rotate(1)
        return original(self)

    return patch.object(JournalQueue, "take", take)


def output_dropped_early() -> Any:
    """An output is forgotten one reader too early."""
    original = ends.release_inputs

    def release(run: Run, place: int) -> None:
        for source in {each.source for each in run.plan.places[place].inputs}:
            if source >= 0 and run.keep[source] == 2:
                run.outputs.pop(source, None)
        original(run, place)

    return patch.object(ends, "release_inputs", release)


def killing_token_misread() -> Any:
    """Word of a killed attempt is held against the new token, which its runner never heard of."""
    original = Core._take_outcome

    def take(self: Core, runner_id: UUID, told: Outcome, run: Run, slot: int, out: Out) -> None:
        record = run.records[slot]
        if record and record.killing is not None and told.token != record.token:
            out.add(attempts._late(runner_id, told))
        else:
            original(self, runner_id, told, run, slot, out)

    return patch.object(Core, "_take_outcome", take)


def done_counted_twice() -> Any:
    """Some completed places count as two."""
    original = planner.complete

    def complete(run: Run, place: int, *given: Any, **named: Any) -> None:
        if place % 5 == 1:
            run.done += 1
        original(run, place, *given, **named)

    return patch.object(planner, "complete", complete)


def cancel_forgotten_at_restore() -> Any:
    """Whoever takes a run over does not see that it was to be cancelled."""
    original = restoring.restore

    def restore(*given: Any) -> Run:
        run = original(*given)
        run.cancelling = False
        return run

    return patch.object(recovery, "restore", restore)


def epoch_not_advanced() -> Any:
    """After a lost flush memory is loaded again under the same epoch: that flush may yet land."""

    async def advance(self: Member) -> None:
        self.live = False

    return patch.object(Member, "advance", advance)


def queue_survives_recovery() -> Any:
    """What was derived from a memory that is gone is written after all."""
    return patch.object(Journal, "clear", lambda _: None)


def alone_forgotten() -> Any:
    """A place that took its runner with it runs beside others again, and is never dead letter."""
    original = planner.lose

    def lose(run: Run, place: int, *given: Any) -> bool:
        record = run.records[place]
        assert record is not None
        record.alone = False
        return original(run, place, *given)

    return patch.object(planner, "lose", lose)


def map_joins_early() -> Any:
    """A map is over as soon as all but one of its elements are."""
    original = groups.part_over

    def part_over(run: Run, slot: int, *given: Any, **named: Any) -> None:
        part = run.part(slot)
        group = run.groups.get(part.group) if part is not None else None
        if group is not None and group.begun == group.count and group.open == 2:
            group.open -= 1
        original(run, slot, *given, **named)

    return patch.object(groups, "part_over", part_over)


def word_taken_twice() -> Any:
    """A word that came early stays there for the next one that waits."""
    original = waits._listen

    def listen(run: Run, slot: int, *given: Any) -> Any:
        rule = run.place(slot).wait
        assert rule is not None
        early = list(run.signals.get(rule.name, ()))
        output = original(run, slot, *given)
        if early:
            run.signals[rule.name] = deque(early)
        return output

    return patch.object(waits, "_listen", listen)


def pause_forgotten_at_restore() -> Any:
    """Whoever takes a run over lets it go on, paused or not."""
    original = restoring.restore

    def restore(*given: Any) -> Run:
        run = original(*given)
        if run.status is RunStatus.PAUSED:
            run.status = RunStatus.RUNNING
        return run

    return patch.object(recovery, "restore", restore)


def sub_workflow_left_running() -> Any:
    """A run that is stopped does not stop its sub-workflows, and does not wait for them."""
    original = stopping.stop

    def stop(run: Run, t: Transition, fx: Effects, **named: Any) -> None:
        children = [each for each in run.records if each is not None and each.child is not None]
        waiting = [each for each in children if each.status is NodeStatus.WAITING]
        run.running -= len(waiting)
        original(run, t, fx, **named)
        fx.stops.clear()

    return patch.object(stopping, "stop", stop)


def join_of_any_waits_for_none() -> Any:
    """A place that any of its sources is enough for begins without one."""
    original = ends.decide

    def decide(run: Run, place: int) -> ends.Verdict:
        if run.plan.places[place].needed is not None and run.remaining[place]:
            return ends.Verdict.RUN
        return original(run, place)

    return patch.object(routes, "decide", decide)


def limits_looked_at_seldom() -> Any:
    """Some attempts begin without a place under their limits."""
    original = Limits.of_slot

    def of_slot(self: Limits, run: Run, slot: int) -> Lane:
        return original(self, run, slot) if slot % 3 else ()

    return patch.object(Limits, "of_slot", of_slot)


def place_never_given_back() -> Any:
    """Some attempts end and keep their places under limits."""
    original = Dispatch._give_back

    def give_back(self: Dispatch, row: UUID, t: Transition) -> None:
        original(self, row, t)
        if self._token % 4 == 0:
            t.frees = ()

    return patch.object(Dispatch, "_give_back", give_back)


def counted_under_another_key() -> Any:
    """Runs are counted by something else than what they were given."""
    original = Limits._demand

    def demand(self: Limits, run: Run, limit: Limit) -> Demand:
        found = original(self, run, limit)
        return found._replace(key=str(run.id.int % 2)) if limit.key is not None else found

    return patch.object(Limits, "_demand", demand)


def budget_counted_twice_after_a_reload() -> Any:
    """Whoever takes a run over counts what it used before as used once more."""
    original = quota_usage.get_budgets

    async def get_budgets(*given: Any) -> dict[UUID, Budget]:
        found = await original(*given)
        for budget in found.values():
            budget.nodes, budget.cpu_us = 2 * budget.nodes, 2 * budget.cpu_us
        return found

    return patch.object(quota_usage, "get_budgets", get_budgets)


def stopped_attempts_are_free() -> Any:
    """What an attempt consumed that was told to end is charged to nobody."""
    original = Ledger.charge

    def charge(self: Ledger, run: Run, root: Run, usage: Usage, t: Transition) -> Any:
        stopped = run.cancelling or run.expired  # nothing is told to end in any other run
        return original(self, run, root, NO_USAGE if stopped else usage, t)

    return patch.object(Ledger, "charge", charge)


def cached_for_other_inputs() -> Any:
    """What is kept of a node is found by the names of its inputs, whatever they hold."""
    original = cache_queue._parts

    def parts(value: Value) -> list[bytes] | None:
        return None if original(value) is None else []

    return patch.object(cache_queue, "_parts", parts)


def kept_results_never_age() -> Any:
    """A result is given as long as it is kept, which other nodes may have longer."""
    original = cache_queue.ask_for

    def ask_for(run: Run, slot: int) -> cache_queue.Ask | None:
        ask = original(run, slot)
        return ask and ask._replace(ttl_ms=ask.ttl_ms and 3_600_000)

    return patch.object(cache_queue, "ask_for", ask_for)


def cache_not_ignored() -> Any:
    """A run that ignores the cache is given what it has."""
    original = cache_queue.ask_for

    def ask_for(run: Run, slot: int) -> cache_queue.Ask | None:
        ask = original(run, slot)
        return ask and ask._replace(ttl_ms=run.place(slot).cache_ttl_ms or 0)

    return patch.object(cache_queue, "ask_for", ask_for)


def kept_results_not_verified() -> Any:
    """What is kept is given as it is, whether it is what its node gives or not."""

    def to_output(_: cache_queue.Ask, row: Any) -> Any:
        return tuple(recovery.split_object(row["output_data"]).values())

    return patch.object(cached_results, "_to_output", to_output)


BUGS: Final[dict[str, Bug]] = {
    each.__name__: each
    for each in (
        token_stays_when_stopped,
        ack_before_commit,
        successor_without_all_parents,
        retry_not_counted,
        result_of_another_taken,
        timers_forgotten,
        transitions_swapped,
        output_dropped_early,
        killing_token_misread,
        done_counted_twice,
        cancel_forgotten_at_restore,
        epoch_not_advanced,
        queue_survives_recovery,
        alone_forgotten,
        map_joins_early,
        word_taken_twice,
        pause_forgotten_at_restore,
        sub_workflow_left_running,
        join_of_any_waits_for_none,
        limits_looked_at_seldom,
        place_never_given_back,
        counted_under_another_key,
        budget_counted_twice_after_a_reload,
        stopped_attempts_are_free,
        cached_for_other_inputs,
        kept_results_never_age,
        cache_not_ignored,
        kept_results_not_verified,
    )
}

# The seeds that found what hundreds of others do not, tried first: where a change of the worlds has
# made one of them harmless, the search goes through them all as for any other bug.
FOUND_BY: Final[dict[str, tuple[int, ...]]] = {
    "result_of_another_taken": (135,),
    "alone_forgotten": (180,),
    "sub_workflow_left_running": (144,),
    "kept_results_never_age": (49,),
    "kept_results_not_verified": (334,),
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """Have a bug inside the block."""
    with BUGS[name]():
        yield
