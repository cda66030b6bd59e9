"""Conversions of the engine, held against those of the runner's agent."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from qflow.types import METHODS, ConversionError, convert, dump_exact

from services.runner.agent.conversions import converted
from services.runner.agent.plain import dump, parse
from services.runner.agent.problems import Mismatch
from tests.unit.types.strategies import TEXT
from tests.unit.types.test_round_trips import RELAXED

_TEXTS = (
    [" 12 ", "1_0", "0x1", "TRUE", "0", "1e400", "nan", "2024-02-29", "2024-13-01", "[1]", "1.50"],
    ["2024-02-29T01:02:03Z", "6f1d1b8e-0000-4000-8000-000000000001", "{", '"'],
)
_PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**20), 10**20),
        st.floats(allow_nan=False, allow_infinity=False),
        TEXT,
        st.sampled_from([text for row in _TEXTS for text in row]),
    ),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


@RELAXED
@given(st.sampled_from(sorted(METHODS)), _PLAIN)
@example("int_to_float", 2**53 + 1)
@example("list_to_set", [1, True, 1.0, [1], [True], {"a": 1}, {"a": 1}])
@example("json_to_value", '{"a":1,"a":2}')
def test_the_engine_converts_as_the_agent_does(method: str, plain: Any) -> None:
    """Both give the same value, or both refuse and tell the value's shape alone."""
    text = dump_exact(plain)
    expected, refused = _by_the_agent(method, text)
    if refused:
        with pytest.raises(ConversionError) as told:
            convert(text.encode(), method)
        assert refused.partition(":")[0] == str(told.value).partition(":")[0]
    else:
        assert expected == repr(json.loads(convert(text.encode(), method)))


def _by_the_agent(method: str, text: str) -> tuple[str, str]:
    try:
        made = dump(converted(method, parse(text)))
    except Mismatch as problem:
        return "", str(problem.args[0])
    return repr(json.loads(made)), ""


def test_elements_are_converted_as_many_levels_down_as_are_asked_for() -> None:
    assert b"[[1,2],[],null]" == convert(b'[["1","2"],[],null]', "str_to_int", depth=2)
    with pytest.raises(ConversionError, match="str_to_int of a text of 1 characters: the text is"):
        convert(b'["1","x"]', "str_to_int", depth=1)
