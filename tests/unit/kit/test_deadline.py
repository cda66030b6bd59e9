"""By when calls end, as the server sees to it."""

from __future__ import annotations

import pytest

from services.kit.errors import DeadlineExceeded
from services.kit.rpc import deadline


@pytest.mark.parametrize("left_s", [0.0, -1.0])
def test_a_call_whose_time_was_over_before_it_began_is_refused(left_s: float) -> None:
    """B13: whatever the client's own clock made of it."""
    with pytest.raises(DeadlineExceeded, match="passed before the call began"):
        deadline.begin(left_s)
