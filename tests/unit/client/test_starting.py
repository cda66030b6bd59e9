"""What a start says is refused where it is written, in words."""

from __future__ import annotations

from typing import Any

import pytest
import qflow
from qflow.client.starting import StartOptions


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"labels": {"a": 1}}, "the label 'a' is 1"),
        ({"labels": ["a"]}, "labels=…) takes Mapping"),
        ({"business_key": 5}, "business_key=…) takes str, not 5"),
        ({"timeout": 30}, "timeout=…) takes timedelta, not 30"),
        ({"priority": "high"}, "priority=…) takes int, not 'high'"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_name(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(qflow.AuthoringError) as refused:
        StartOptions(**options)
    assert told in str(refused.value)


def test_what_is_left_out_is_no_fault() -> None:
    assert StartOptions(timeout=None, start_time=None, labels={"a": "1"}).priority == 0
