"""How what is open is loaded: in pieces that leave the loop free, and without beginning anew."""

from __future__ import annotations

from uuid import UUID

from services.orchestrator.domain.commands import AssignCommand, KillCommand
from services.orchestrator.domain.needs import Offer
from services.orchestrator.usecases.recover import _PIECE_NODES_MAX, _pieces
from tests.unit.orchestrator.graphs import plan_of
from tests.unit.orchestrator.test_core import ONE, PYTHONS, new_core, start


def test_runs_are_loaded_in_pieces_of_bounded_size_and_all_of_them() -> None:
    small, large = plan_of([], 700), plan_of([], _PIECE_NODES_MAX + 1)
    plans = {small.pins_id: small, large.pins_id: large}
    pins = {UUID(int=at): (large if at % 10 == 3 else small).pins_id for at in range(40)}
    pieces = list(_pieces(pins, plans))
    assert list(pins) == [run_id for piece in pieces for run_id in piece]
    sizes = [[len(plans[pins[run_id]].places) for run_id in piece] for piece in pieces]
    assert all(sum(each) <= _PIECE_NODES_MAX or len(each) == 1 for each in sizes)
    assert max(len(each) for each in sizes) == 7


def test_a_cancelled_run_that_is_loaded_again_is_killed_where_it_runs_and_not_begun_anew() -> None:
    """G3, I14: its rows have a later token than its runner, which must not take it for an order."""
    before = new_core((ONE, 1))
    run = start(before, plan_of([], 1))
    record = run.records[0]
    assert record is not None
    given = record.token
    before.cancel(run.id)
    record.killing = None  # what memory alone knew
    after = new_core()
    after.adopt(run, now=0.0, due_s={}, deadline_s=None)
    assert [] == after.redispatch()
    [t] = after.attached(ONE, Offer(pythons=PYTHONS, tier="T2"), {record.id: given})
    assert [KillCommand(ONE, record.id, given)] == t.commands
    assert not any(isinstance(each, AssignCommand) for each in t.commands)
