"""The runner's end of an agent's channel: one answer for each question, and nothing behind it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator

import pytest

from services.runner.gateways.sandbox.channel import AgentChannel
from services.runner.gateways.sandbox.port import Reply, SandboxDied


class Channel:
    """A channel whose far end is the test's."""

    def __init__(self) -> None:
        self.faults = 0
        self.channel = AgentChannel(
            asyncio.get_running_loop(),
            on_fault=self._fault,
            on_log=lambda _header, _body: None,
            on_beat=lambda _body: None,
        )
        self.heard: asyncio.Queue[Reply | SandboxDied] = asyncio.Queue()

    def _fault(self) -> None:
        self.faults += 1

    def say(self, *frames: tuple[dict[str, object], bytes]) -> None:
        data = b""
        for header, body in frames:
            head = json.dumps(header).encode()
            data += struct.pack("!II", len(head), len(body)) + head + body
        self.channel.far_end.sendall(data)

    def ask(self) -> None:
        self.channel.hear(self.heard.put_nowait, reply_bytes_max=100)
        self.channel.send({"op": "call"}, b"")


@pytest.fixture
async def agent() -> Channel:
    return Channel()


@pytest.fixture(autouse=True)
def closed(agent: Channel) -> Iterator[None]:
    yield
    agent.channel.close()


async def test_an_answer_is_told_where_it_is_read(agent: Channel) -> None:
    agent.ask()
    agent.say(({"op": "result"}, b"2"))
    answer = await agent.heard.get()
    assert isinstance(answer, Reply)
    assert ({"op": "result"}, b"2") == (answer.header, answer.body)
    agent.ask()
    agent.say(({"op": "result"}, b"3"))
    assert isinstance(await agent.heard.get(), Reply)
    assert 0 == agent.faults


async def test_what_stands_behind_an_answer_is_not_taken_for_the_next_call_s(
    agent: Channel,
) -> None:
    """Whoever is told of an answer may ask the next thing at once."""
    asked: list[bool] = []

    def go_on(answer: Reply | SandboxDied) -> None:
        agent.heard.put_nowait(answer)
        asked.append(agent.channel.broken)

    agent.channel.hear(go_on, reply_bytes_max=100)
    agent.say(({"op": "result"}, b"2"), ({"op": "result"}, b"forged"))
    answer = await agent.heard.get()
    assert isinstance(answer, Reply)
    assert b"2" == answer.body
    assert ([True], 1) == (asked, agent.faults)


async def test_a_broken_channel_tells_who_asks_later_than_it_is_asked(agent: Channel) -> None:
    agent.channel.fail("gone")
    agent.channel.hear(agent.heard.put_nowait, reply_bytes_max=100)
    assert agent.heard.empty()
    assert "gone" == str(await agent.heard.get())


async def test_what_cannot_be_written_is_told_once(agent: Channel) -> None:
    agent.channel.far_end.shutdown(socket.SHUT_RDWR)
    agent.ask()
    assert isinstance(await agent.heard.get(), SandboxDied)
    await asyncio.sleep(0)
    assert agent.heard.empty()


async def test_an_answer_that_nobody_awaits_any_more_is_a_fault(agent: Channel) -> None:
    waiting = agent.channel.expect()
    with pytest.raises(RuntimeError, match="one request at a time"):
        agent.channel.expect()
    waiting.cancel()
    await asyncio.sleep(0)
    agent.say(({"op": "result"}, b"2"))
    async with asyncio.timeout(30):
        while not agent.faults:  # noqa: ASYNC110  # the loop reads when it reads
            await asyncio.sleep(0)
    assert agent.channel.broken
