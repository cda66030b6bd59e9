"""What is known of a call by its heartbeats."""

from __future__ import annotations

import pytest

from services.runner.domain.pulse import PROGRESS_BYTES_MAX, Pulse


def test_the_first_beat_is_due_so_long_after_the_call_began() -> None:
    pulse = Pulse(2.0, now_s=10.0)
    assert 12.0 == pulse.due_s()
    assert "no heartbeat came for 2 s: not one since the call began" == pulse.silence()


def test_each_beat_puts_the_next_one_off() -> None:
    pulse = Pulse(2.0, now_s=10.0)
    pulse.beat(b"", now_s=11.5)
    assert 13.5 == pulse.due_s()
    assert "no heartbeat came for 2 s: the last came 1.5 s into the call" == pulse.silence()


def test_a_beat_that_says_nothing_leaves_what_was_said() -> None:
    pulse = Pulse(2.0, now_s=0.0)
    pulse.beat(b'{"page":7}', now_s=1.0)
    pulse.beat(b"", now_s=2.0)
    assert '{"page":7}' == pulse.progress()
    assert pulse.silence().endswith('2.0 s into the call, and said {"page":7}')


@pytest.mark.parametrize(
    "said", [b"{", b"NaN", b'"\xff"', b'"' + b"x" * PROGRESS_BYTES_MAX + b'"', b"[" * 100]
)
def test_what_is_no_value_is_not_kept(said: bytes) -> None:
    """A sandbox says what it likes: it must not reach a row, nor end what reads it."""
    pulse = Pulse(2.0, now_s=0.0)
    pulse.beat(said, now_s=1.0)
    assert "" == pulse.progress()
    assert pulse.silence().endswith("into the call")
