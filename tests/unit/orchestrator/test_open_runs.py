"""Runs that callers steer: what they are told of one that ends in that moment."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from services.kit.errors import FailedPrecondition, Unavailable
from services.orchestrator.domain.status import RunStatus
from services.orchestrator.usecases.controls import Controls

RUN = UUID(int=5)


def controls(*final: bool) -> Controls:
    """Of a run that memory does not have, whose row says each time whether it is over."""
    left = list(final)

    async def get(*_: object, **__: object) -> tuple[object, None]:
        over = left.pop(0)
        status = RunStatus.COMPLETED if over else RunStatus.RUNNING
        return SimpleNamespace(final=over, status=status), None

    engine = SimpleNamespace(core=SimpleNamespace(runs={}), recovering=False)
    return Controls(cast("Any", SimpleNamespace(get=get)), cast("Any", engine))


async def test_a_run_that_ends_as_it_is_looked_at_is_told_as_finished() -> None:
    """It was told that the engine reads it anew, and to repeat the call."""
    with pytest.raises(FailedPrecondition) as told:
        await controls(False, True).open_run(cast("Any", None), RUN)
    assert "EXECUTION_FINISHED" == told.value.reason


async def test_a_run_that_is_read_anew_is_asked_for_again() -> None:
    with pytest.raises(Unavailable) as told:
        await controls(False, False).open_run(cast("Any", None), RUN)
    assert "ENGINE_RECOVERING" == told.value.reason
