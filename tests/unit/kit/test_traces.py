"""Places in a trace, as they come, are kept and go on."""

from __future__ import annotations

from uuid import UUID

import pytest

from services.kit import traces
from services.kit.env import EnvError

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PLACE = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        PLACE.upper(),
        PLACE + "-x",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-1",
        f"00-{TRACE}-{SPAN}-01\n",
        f"01-{TRACE}-{SPAN}-01x",
    ],
)
def test_what_is_no_place_in_a_trace_is_none(text: str) -> None:
    assert traces.given(text) is None


def test_a_place_of_a_later_form_is_read_as_far_as_it_is_known() -> None:
    assert PLACE == traces.given(PLACE)
    assert PLACE == traces.given(f"cc-{TRACE}-{SPAN}-01-what-the-future-holds")


def test_a_place_below_another_is_in_the_same_trace() -> None:
    place = traces.below(PLACE, "00000000000000aa")
    assert place == f"00-{TRACE}-00000000000000aa-01"
    assert traces.sampled(place)
    assert not traces.sampled(f"00-{TRACE}-{SPAN}-00")
    assert not traces.sampled(f"00-{TRACE}-{SPAN}-02")


def test_spans_of_rows_follow_from_them_and_differ() -> None:
    row = UUID(int=7)
    spans = [
        traces.execution_span(row),
        traces.attempt_span(row, 1),
        traces.attempt_span(row, 2),
        traces.execution_span(UUID(int=8)),
    ]
    assert len(set(spans)) == 4
    assert spans[0] == traces.execution_span(UUID(int=7))
    assert all(traces.given(f"00-{TRACE}-{span}-01") for span in spans)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("QFLOW_TRACES_ENDPOINT", "collector:4317"),
        ("QFLOW_TRACES_ENDPOINT", "http://collector:4317/v1/traces"),
        ("QFLOW_TRACES_RATIO", "1.1"),
        ("QFLOW_TRACES_RATIO", "nan"),
    ],
)
async def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    env = {"QFLOW_TRACES_ENDPOINT": "http://localhost:4317", name: value}
    with pytest.raises(EnvError, match=name):
        async with traces.told("test", env):
            pass
    assert traces.tracer() is None


async def test_a_share_of_the_traces_that_begin_here_is_told() -> None:
    env = {"QFLOW_TRACES_ENDPOINT": "http://127.0.0.1:9"}
    async with traces.told("test", env | {"QFLOW_TRACES_RATIO": "0"}) as none:
        assert none is not None
        assert [None] * 100 == [none.begin() for _ in range(100)]
    async with traces.told("test", env) as every:
        assert every is not None
        assert len({every.begin() for _ in range(100)} - {None}) == 100
    async with traces.told("test", {}) as off:
        assert off is None
