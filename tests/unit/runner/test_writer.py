"""What a runner writes on its streams: at once where nothing has to wait, and in order."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from typing import cast

from services.runner.domain.frames import Finished, Outgoing, Value
from services.runner.domain.outcome import Outcome
from services.runner.gateways.attach import AttachStream
from services.runner.loops.attach import _Writer
from services.runner.usecases.session import Session


async def no_values(attempt_ref: uuid.UUID, token: int, count: int) -> Sequence[Value]:
    raise AssertionError


class Stream:
    """Takes what is written; a lane while `has_room`."""

    def __init__(self) -> None:
        self.has_room = True
        self.written: list[tuple[str, list[int]]] = []

    def put(self, outgoing: Outgoing) -> bool:
        if self.has_room:
            self._note("at once", outgoing)
        return self.has_room

    async def send(self, outgoing: Outgoing) -> None:
        self._note("later", outgoing)

    def _note(self, how: str, outgoing: Outgoing) -> None:
        self.written.append((how, [each.token for each in outgoing.results]))


class Writing:
    def __init__(self) -> None:
        self.stream = Stream()
        self.session = Session(no_values)
        writer = _Writer(cast("AttachStream", self.stream), self.session)
        self.task = asyncio.create_task(writer.write())

    def end(self, token: int) -> None:
        self.session.outgoing.results.append(
            Finished(attempt_ref=uuid.UUID(int=token), token=token, outcome=Outcome())
        )

    async def settle(self) -> list[tuple[str, list[int]]]:
        for _ in range(10):
            await asyncio.sleep(0)
        written, self.stream.written = self.stream.written, []
        return written


async def test_a_result_is_written_at_once_and_the_next_one_after_the_answer() -> None:
    writing = Writing()
    assert [] == await writing.settle()
    writing.end(1)
    writing.session.let_go()
    assert [("at once", [1])] == writing.stream.written
    writing.end(2)
    writing.session.let_go()
    writing.end(3)
    writing.session.let_go()
    assert [("at once", [1])] == await writing.settle()
    writing.session.answered.set()
    assert [("later", [2, 3])] == await writing.settle()
    writing.task.cancel()


async def test_what_the_writer_is_about_to_take_is_not_overtaken() -> None:
    writing = Writing()
    writing.end(1)
    writing.session.let_go()  # the writer has not begun to wait
    assert [] == writing.stream.written
    assert [("later", [1])] == await writing.settle()
    writing.session.answered.set()
    writing.end(2)
    writing.session.ready.set()
    writing.end(3)
    writing.session.let_go()
    assert [("later", [2, 3])] == await writing.settle()
    writing.task.cancel()


async def test_what_has_no_room_at_once_is_written_when_it_has() -> None:
    writing = Writing()
    writing.stream.has_room = False
    await writing.settle()
    writing.end(1)
    writing.session.let_go()
    assert [("later", [1])] == await writing.settle()
    writing.task.cancel()
