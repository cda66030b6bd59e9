"""What of a flush is sealed: every column with user data, and no other."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from services.orchestrator.domain.rows import AttemptInsert, RunChange, SignalWrite
from services.orchestrator.domain.transition import Transition
from services.orchestrator.rpc.attach import _progress
from services.orchestrator.storage import flush

_RUN = UUID(int=1)


def row(kind: Any, **values: Any) -> Any:
    """A row whose other columns are none."""
    return kind(**{name: values.get(name) for name in kind._fields})


def test_each_column_with_user_data_is_sealed_and_no_other() -> None:
    """S65: also signals, and what a failed attempt said of its progress."""
    batch = [
        Transition(
            _RUN,
            signals=[row(SignalWrite, id=_RUN, name="go", payload="[1]")],
            attempts=[row(AttemptInsert, token=1, progress="7"), row(AttemptInsert, token=2)],
            run_changes=[row(RunChange, id=_RUN, status="completed", output_data='{"out":1}')],
        )
    ]
    clear, sealed = flush.prepare(batch), flush.prepare(batch, lambda text: f"sealed {text}")
    assert clear.sql == sealed.sql
    changed = [
        (list(before), list(after))
        for before, after in zip(clear.arguments, sealed.arguments, strict=True)
        if list(before) != list(after)
    ]
    assert [
        (['{"out":1}'], ['sealed {"out":1}']),
        (["7", None], ["sealed 7", None]),
        (["[1]"], ["sealed [1]"]),
    ] == changed


def test_what_goes_as_plain_values_is_sealed_too() -> None:
    """A flush of no more than one row for each table."""
    change = row(RunChange, id=_RUN, status="completed", output_data='{"out":1}')
    batch = [Transition(_RUN, run_changes=[change])]
    clear, sealed = flush.prepare(batch), flush.prepare(batch, lambda text: f"sealed {text}")
    changed = [
        pair for pair in zip(clear.arguments, sealed.arguments, strict=True) if pair[0] != pair[1]
    ]
    assert [('{"out":1}', 'sealed {"out":1}')] == changed


def test_every_column_that_is_stored_as_data_of_users_is_named() -> None:
    """A column that is added under one of these names is sealed too, or this fails."""
    for part in flush.PARTS:
        names = {column.split()[0] for column in part.columns.split(",")}
        assert names & {"input_data", "output_data", "payload", "progress"} == {*part.data}, part


@pytest.mark.parametrize(("text", "kept"), [('"half"', '"half"'), ('"qf1.x"', None), ("{", None)])
def test_progress_that_looks_like_something_sealed_is_not_kept(text: str, kept: str | None) -> None:
    assert kept == _progress(text)
