"""Results on the wire: in as few frames as their size allows, each once, in their order."""

from __future__ import annotations

import uuid

from services.runner.domain.frames import Declined, Finished, Outgoing
from services.runner.domain.outcome import Outcome, Usage
from services.runner.gateways import attach_frames

_LIMIT = 256 * 1024


def finished(token: int, size: int) -> Finished:
    return Finished(
        attempt_ref=uuid.UUID(int=token),
        token=token,
        outcome=Outcome(outputs=[("result", b"1" * size)], usage=Usage(cpu_us=token)),
    )


def test_frames_stay_below_their_limit_unless_one_result_alone_does_not() -> None:
    sizes = [60_000] * 9 + [_LIMIT, 1]
    results = [finished(token, size) for token, size in enumerate(sizes)]
    declines = [Declined(uuid.UUID(int=99), 1, "over_grant")]
    frames = list(attach_frames.frames(Outgoing(results=results, declines=declines)))
    tokens = [[each.token for each in frame.results] for frame in frames]
    assert [[0, 1, 2, 3], [4, 5, 6, 7], [8], [9], [10]] == tokens
    assert [True, True, True, False, True] == [frame.ByteSize() < _LIMIT for frame in frames]
    assert [1, 0, 0, 0, 0] == [len(frame.declines) for frame in frames]
    assert list(range(11)) == [each.cpu_us for frame in frames for each in frame.results]
