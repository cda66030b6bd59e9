"""How long a sleep lasts whose time was worked out: any number is over, waited for, or refused."""

from __future__ import annotations

import pytest

from services.orchestrator.domain.status import NodeStatus
from tests.unit.orchestrator.test_core import new_core, start
from tests.unit.orchestrator.test_found_by_worlds import plan_of


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ("-1.7e308", NodeStatus.COMPLETED),  # its milliseconds are less than any number
        ("-1", NodeStatus.COMPLETED),
        ("-0.0", NodeStatus.COMPLETED),
        ("31622400", NodeStatus.WAITING),
        ("31622400.001", NodeStatus.FAILED),
        ("1.7e308", NodeStatus.FAILED),
        ("1" + "0" * 400, NodeStatus.FAILED),
        ("-1" + "0" * 400, NodeStatus.COMPLETED),
    ],
)
def test_a_sleep_takes_any_number_of_seconds(seconds: str, expected: NodeStatus) -> None:
    core = new_core()
    run = start(core, plan_of({"kind": "sleep", "parameters": {"seconds": seconds}}))
    core.due(now=0.001)
    [record] = run.records
    assert record is not None
    assert expected == record.status
