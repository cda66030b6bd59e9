"""What a start says is refused where it is written, in words."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import qflow
from qflow.client import contexts, starting
from qflow.client.client import Client
from qflow.client.starting import StartOptions
from qflow.orchestrator.v1 import execution_pb2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"labels": {"a": 1}}, "the label 'a' is 1"),
        ({"labels": ["a"]}, "labels=…) takes Mapping"),
        ({"business_key": 5}, "business_key=…) takes str, not 5"),
        ({"timeout": 30}, "timeout=…) takes timedelta, not 30"),
        ({"priority": "high"}, "priority=…) takes int, not 'high'"),
        ({"on_conflict": "cancel"}, "use_existing, cancel_existing, not 'cancel'"),
        ({"on_reuse": "never"}, "allow, allow_if_failed, reject, not 'never'"),
        ({"request_id": "order 4"}, "is uuid.uuid5(uuid.NAMESPACE_URL, 'order 4')"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_name(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(qflow.AuthoringError) as refused:
        StartOptions(**options)
    assert told in str(refused.value)


def test_a_start_says_what_its_key_means_for_other_runs() -> None:
    options = StartOptions(business_key="k", on_conflict="cancel_existing", on_reuse="reject")
    said = starting.request(options, str(uuid.uuid4()), 1, "", "{}")
    assert execution_pb2.BUSINESS_KEY_CONFLICT_POLICY_CANCEL_EXISTING == said.business_key_conflict
    assert execution_pb2.BUSINESS_KEY_REUSE_POLICY_REJECT == said.business_key_reuse


@qflow.node
def plain(n: int) -> int:
    return n


@pytest.mark.parametrize(
    "say",
    [
        lambda: plain.options(time_out=timedelta(seconds=1)),
        lambda: qflow.node(time_out=timedelta(seconds=1))(lambda n: n),
        lambda: Client(
            contexts.Context(registry="", orchestrator="", runner="", telemetry="")
        ).options(time_out=timedelta(seconds=1)),
    ],
    ids=["node", "decorator", "client"],
)
async def test_an_option_that_there_is_not_is_told_with_what_is_meant(
    say: Callable[[], object],
) -> None:
    """In a loop: a client opens channels, which belong to one."""
    with pytest.raises(qflow.AuthoringError, match=r"no option time_out \(is timeout meant\?\)"):
        say()


def test_what_is_left_out_is_no_fault() -> None:
    assert StartOptions(timeout=None, start_time=None, labels={"a": "1"}).priority == 0
