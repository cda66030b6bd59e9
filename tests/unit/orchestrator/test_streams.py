"""What a held stream tells its runner, read as a runner reads it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from services.kit.lane import Lane
from services.kit.rpc.listener import MESSAGE_BYTES_MAX
from services.orchestrator.domain.commands import AckCommand, KillCommand, SupersededCommand
from services.orchestrator.engine.streams import Assignment, Outgoing, Peers, Stream
from services.orchestrator.rpc.attach import AttachServicer
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


async def test_what_is_let_go_is_said_at_once_and_overtakes_nothing() -> None:
    """Only while the taker waits for more: what it took, or is to take, goes before."""
    stream, said = Stream(RUNNER), list[Outgoing]()
    may = True

    def say(commands: Sequence[Outgoing]) -> bool:
        if may:
            said.extend(commands)
        return may

    stream.say = say
    words = [AckCommand(RUNNER, UUID(int=at), at) for at in range(6)]
    stream.send(words[0])  # nobody waits for it yet: it may be that something is being said
    assert [words[0]] == await stream.take()
    taking = asyncio.create_task(stream.take())
    await asyncio.sleep(0)
    stream.queue(words[1])
    stream.queue(words[2])
    assert [] == said
    stream.let_go()
    assert words[1:3] == said
    may = False
    stream.send(words[3])
    may = True
    stream.send(words[4])  # the one before is still to be taken
    assert words[3:5] == await taking
    stream.send(words[5])  # as long as the taker is at it
    assert words[1:3] == said
    assert words[5:] == await stream.take()


@pytest.mark.parametrize(
    ("certain", "command", "said"),
    [
        (True, AckCommand(RUNNER, RUN, 1), True),
        (False, AckCommand(RUNNER, RUN, 1), False),  # first it asks whether its runs are its own
        (True, SupersededCommand(RUNNER, RUN, 1), False),  # the database confirms that
        (True, Peers(("x" * MESSAGE_BYTES_MAX,)), False),  # whoever says it ends the stream
        (True, AckCommand(RUNNER, RUN, -1 << 70), False),
    ],
)
async def test_at_once_is_said_only_what_waits_for_no_answer(
    *, certain: bool, command: Outgoing, said: bool
) -> None:
    engine: Any = SimpleNamespace(member=SimpleNamespace(certain=certain))
    lane = Lane(lambda _: None, bytes_max=0)
    written: list[bytes] = []
    lane.connection_made(
        cast("Any", SimpleNamespace(write=written.append, set_write_buffer_limits=lambda **_: None))
    )
    servicer = AttachServicer(engine, cast("Any", None))
    assert said == servicer._say(lane, [command])
    assert said == bool(written)
