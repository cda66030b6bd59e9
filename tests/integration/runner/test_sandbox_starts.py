"""How soon a sandbox is there, held against the same process without walls beside it."""

from __future__ import annotations

import pytest

from bench import sandboxes

# Walls cost some twenty milliseconds; a start that costs ten times a bare one is something else.
_TIMES_MAX = 10.0


async def test_walls_do_not_make_the_start_of_a_sandbox_many_times_as_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """E16: in turns with a bare process, so that what else the machine does slows both."""
    monkeypatch.setattr(sandboxes, "_COLD", 3)
    found = await sandboxes.cold_sandbox()
    assert 3 == found["rounds"]
    assert found["median"] < _TIMES_MAX * found["floor"], found
