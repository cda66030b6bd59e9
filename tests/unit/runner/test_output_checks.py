"""What left a sandbox is proven to be JSON, and the proof costs no more than the text."""

from __future__ import annotations

import tracemalloc

import pytest
from qflow.types.values import ValueTextError

from services.runner.domain.outcome import INLINE_BYTES_MAX
from services.runner.usecases.answers import check_outputs

FILLER = b"0," * INLINE_BYTES_MAX


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"NaN",
        b"[1,]",
        b'"\xff"',
        b'{"a":1} {"b":2}',
        b'{"a":1,"a":2}',
        b'"\\ud800"',
        b"1e400",
        b"[" * 65 + b"]" * 65,
    ],
)
async def test_a_forged_result_is_refused_before_it_reaches_a_row(text: bytes) -> None:
    """B57, B58, B59, B105."""
    with pytest.raises(ValueTextError):
        await check_outputs([("result", text)])


@pytest.mark.parametrize(
    "text",
    [
        b"[" + FILLER + b"NaN]",
        b"[" + FILLER + b"0",
        b"[" + FILLER + b'"\xff"]',
        b"[" * 100_000 + b"]" * 100_000,
    ],
)
async def test_a_forged_result_is_refused_before_it_becomes_a_file(text: bytes) -> None:
    with pytest.raises(ValueTextError):
        await check_outputs([("result", text)])


async def test_a_large_result_takes_little_more_than_its_text() -> None:
    """B106: a list of a million empty lists would be two hundred times its text as objects."""
    text = b"[" + b",".join([b"[]"] * 1_000_000) + b"]"
    tracemalloc.start()
    try:
        await check_outputs([("result", text)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(text)
