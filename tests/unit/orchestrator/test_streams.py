"""What a held stream tells its runner, read as a runner reads it."""

from __future__ import annotations

from uuid import UUID

from services.orchestrator.domain.rows import AckCommand, KillCommand
from services.orchestrator.engine.streams import Assignment, Stream
from services.orchestrator.rpc.frames import FRAME_BYTES_MAX, frames_of
from tests.unit.orchestrator.graphs import plan_of

RUNNER, TENANT, RUN = (UUID(int=number) for number in (1, 2, 3))


async def test_definitions_are_bounded_and_every_assignment_means_the_right_one() -> None:
    """A number is used again for another place, also while an assignment of the first waits."""
    stream = Stream(RUNNER, definitions_max=3)
    plan = plan_of([(at, at + 1) for at in range(9)], 10)
    order = [0, 1, 0, 2, 3, 0, 1, 4, 5, 6, 7, 8, 9, 0, 0, 9, 1]
    for token, place in enumerate(order):
        definition = stream.define(plan, place, TENANT, (0,))
        stream.send(
            Assignment(
                attempt_ref=UUID(int=token),
                token=token,
                definition=definition.number,
                run_id=RUN,
                attempt=1,
                values=(b"1",),
                pull=False,
            )
        )
    known: dict[int, str] = {}
    meant: list[str] = []
    frames = list(frames_of(await stream.take()))
    for frame in frames:
        known |= {each.definition: each.node_id for each in frame.definitions}
        meant += [known[each.definition] for each in frame.assignments]
    assert [f"n{place}" for place in order] == meant
    assert {1, 2, 3} == known.keys()
    # What was used last is kept: the repeated places above cost no definition of their own.
    assert sum(len(frame.definitions) for frame in frames) < len(order)


async def test_a_word_on_an_attempt_never_overtakes_its_assignment() -> None:
    """G3: a runner reads a frame's assignments last, so a Kill after one is in the next frame."""
    stream = Stream(RUNNER)
    definition = stream.define(plan_of([], 1), 0, TENANT, ())
    ref, other = UUID(int=10), UUID(int=11)
    stream.send(Assignment(ref, 7, definition.number, RUN, 1, (), pull=False))
    stream.send(AckCommand(RUNNER, other, 1))
    stream.send(KillCommand(RUNNER, ref, 7))
    frames = list(frames_of(await stream.take()))
    assert [(1, 1, 0), (0, 0, 1)] == [
        (len(frame.assignments), len(frame.acks), len(frame.kills)) for frame in frames
    ]


async def test_frames_stay_below_their_limit() -> None:
    stream = Stream(RUNNER)
    definition = stream.define(plan_of([], 1), 0, TENANT, (0,))
    for token in range(20):
        value = b"1" * 60_000
        stream.send(
            Assignment(UUID(int=token), token, definition.number, RUN, 1, (value,), pull=False)
        )
    frames = list(frames_of(await stream.take()))
    assert 20 == sum(len(frame.assignments) for frame in frames)
    assert max(frame.ByteSize() for frame in frames) <= FRAME_BYTES_MAX
