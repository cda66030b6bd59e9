"""Several calls of one `async def` at once, in every adapter: each keeps what is its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from services.runner.domain.node_logs import Stream
from services.runner.gateways.sandbox.port import Reply, Sandbox, SandboxDied, SharedCalls
from tests.integration.conformance.conftest import ADAPTERS, Start
from tests.integration.runner.conftest import load_header

INT = {"t": "int"}

pytestmark = pytest.mark.parametrize("host", ADAPTERS, indirect=True)


class Written:
    """Takes what one call writes."""

    def __init__(self) -> None:
        self.printed_text = b""
        self.records: list[tuple[int, str]] = []
        self.beats: list[bytes] = []

    def printed(self, stream: Stream, piece: bytes) -> None:
        assert Stream.STDOUT is stream
        self.printed_text += piece

    def recorded(self, level: int, logger: str, text: str) -> None:
        del logger
        self.records.append((level, text))


class Together:
    """A sandbox whose agent serves calls at once."""

    def __init__(self, sandbox: Sandbox, shared: SharedCalls) -> None:
        self.sandbox = sandbox
        self.shared = shared

    def begin(self, x: int, *, log_room: int = 1 << 20, size_max: int = 1 << 20) -> Running:
        """Begin a call; the others go on."""
        return Running(self.shared, x, log_room=log_room, size_max=size_max)


class Running:
    def __init__(self, shared: SharedCalls, x: int, **caps: int) -> None:
        self.talk = shared.begin()
        self.written = Written()
        self.talk.begin_output(self.written, self.written.beats.append)
        header = {
            "op": "call",
            "id": 1,  # as tokens are: the same for many
            "inputs": [["x", len(str(x)), []]],
            "output_bytes_max": caps["size_max"],
            "context": {"QFLOW_NODE_ID": f"n{x}", "QFLOW_PROGRESS": str(x)},
            "log_room": caps["log_room"],
        }
        self.task = asyncio.ensure_future(self.talk.request(header, str(x).encode()))

    async def reply(self) -> Reply:
        async with asyncio.timeout(30):
            return await self.task

    async def value(self) -> Any:
        reply = await self.reply()
        assert "error" not in reply.header, reply.header
        assert 1 == reply.header["id"]
        return json.loads(reply.body)

    async def error(self) -> dict[str, Any]:
        return dict((await self.reply()).header["error"])


async def together(start: Start, code: str) -> Together:
    box = await start("def main():\n    return 0\n", load=False)
    header = load_header(code, {"x": INT}) | {"concurrency": 8}
    reply = await box.sandbox.request(header)
    assert "loaded" == reply.header["op"], reply.header
    return Together(box.sandbox, box.sandbox.share(reply_bytes_max=1 << 21))


# Each waits until as many are inside as the first says.
MEET = """
import asyncio
inside, wanted, gate = 0, 0, asyncio.Event()
async def meet(x):
    global inside, wanted
    wanted = wanted or x
    inside += 1
    if inside == wanted:
        gate.set()
    await gate.wait()
"""


async def test_what_a_call_writes_and_reads_of_itself_is_its_own(start: Start) -> None:
    code = MEET + (
        "import logging, os, sys\n"
        "from qflow import attempt\n"
        "async def child(x):\n"
        "    print('child', x, end=' ')\n"
        "    await asyncio.to_thread(print, 'thread', x)\n"
        "async def main(x):\n"
        "    await meet(x)\n"
        "    print('half', end=' ')\n"
        "    await asyncio.sleep(0)\n"
        "    await asyncio.create_task(child(x))\n"
        "    logging.warning('record %d', x)\n"
        "    attempt.heartbeat({'at': x})\n"
        "    return [os.environ['QFLOW_NODE_ID'], os.getenv('QFLOW_NODE_ID'),\n"
        "            dict(os.environ)['QFLOW_NODE_ID'], attempt.progress()]\n"
    )
    box = await together(start, code)
    calls = [box.begin(x) for x in (5, 6, 7, 8, 9)]
    for x, call in zip((5, 6, 7, 8, 9), calls, strict=True):
        assert [f"n{x}", f"n{x}", f"n{x}", x] == await call.value()
        assert f"half child {x} thread {x}\n".encode() == call.written.printed_text
        assert [(30, f"record {x}")] == call.written.records
        assert [b'{"at":%d}' % x] == call.written.beats
        assert f"half child {x} thread {x}\n" == call.talk.output_tails()[0]


async def test_each_has_its_own_caps_and_errors(start: Start) -> None:
    code = MEET + (
        "async def main(x):\n"
        "    await meet(x)\n"
        "    if x == 4:\n"
        "        return 'long' * 1000\n"
        "    if x == 5:\n"
        "        raise ValueError('of five')\n"
        "    if x == 6:\n"
        "        print('y' * 5000)\n"
        "    return x\n"
    )
    box = await together(start, code)
    calls = [
        box.begin(4, size_max=100),
        box.begin(5),
        box.begin(6, log_room=100),
        box.begin(7),
    ]
    assert "output_too_large" == (await calls[0].error())["type"]
    error = await calls[1].error()
    assert ("user_error", "ValueError: of five") == (error["type"], error["message"])
    assert 6 == await calls[2].value()
    assert b"" == calls[3].written.printed_text
    assert 7 == await calls[3].value()
    assert box.sandbox.alive()


async def test_one_is_cancelled_and_the_others_go_on(start: Start) -> None:
    code = MEET + (
        "async def main(x):\n"
        "    await meet(3)\n"
        "    if x == 1:\n"
        "        try:\n"
        "            await asyncio.sleep(600)\n"
        "        finally:\n"
        "            print('cleaned')\n"
        "    await asyncio.sleep(0.05)\n"
        "    return x\n"
    )
    box = await together(start, code)
    calls = [box.begin(x) for x in (1, 2, 3)]
    assert [2, 3] == [await each.value() for each in calls[1:]]
    calls[0].talk.cancel()
    assert "cancelled" == (await calls[0].error())["type"]
    assert b"cleaned\n" == calls[0].written.printed_text
    never_begun = box.begin(1)
    never_begun.talk.cancel()
    assert "cancelled" == (await never_begun.error())["type"]
    assert 4 == await box.begin(4).value()
    assert all(each.talk.met for each in calls)


async def test_what_they_use_is_told_in_parts_whose_sum_is_the_whole(start: Start) -> None:
    code = MEET + (
        "import time\n"
        "async def main(x):\n"
        "    await meet(2)\n"
        "    if x == 1:\n"
        "        end = time.process_time() + 0.4\n"
        "        while time.process_time() < end: pass\n"
        "    gate.clear(); await asyncio.sleep(0.01)\n"
        "    return x\n"
    )
    box = await together(start, code)
    replies = [await each.reply() for each in [box.begin(1), box.begin(2)]]
    spent = [each.header["usage"]["cpu_us"] for each in replies]
    assert 400_000 <= sum(spent) < 1_000_000
    assert min(spent) > 150_000, "the idle one was under way while the other worked"
    assert all(each.header["usage"]["max_rss_kb"] > 1000 for each in replies)


async def test_what_ends_one_ends_all_of_them_and_says_that_they_met(start: Start) -> None:
    """B107."""
    code = MEET + "import os\nasync def main(x):\n    await meet(2)\n    os._exit(7)\n"
    box = await together(start, code)
    calls = [box.begin(1), box.begin(2)]
    for call in calls:
        with pytest.raises(SandboxDied, match="exit status 7"):
            await call.reply()
        assert call.talk.met
    await box.sandbox.ended


async def test_what_is_left_behind_is_told_when_none_is_under_way(start: Start) -> None:
    code = MEET + (
        "kept = []\n"
        "async def main(x):\n"
        "    kept.append(asyncio.create_task(asyncio.sleep(600)))\n"
        "    await meet(2)\n"
        "    await asyncio.sleep(0.05 * x)\n"
        "    return x\n"
    )
    box = await together(start, code)
    replies = [await each.reply() for each in [box.begin(1), box.begin(2)]]
    assert [False, True] == [each.header["quiet"] for each in replies]
    assert ["", "asyncio tasks"] == [each.header["recycle"] for each in replies]


async def test_an_answer_for_nobody_ends_the_sandbox(start: Start) -> None:
    """B107: of what the agent says nothing is believed; user code may have written it."""
    code = (
        "import os, struct\n"
        "async def main(x):\n"
        '    head = b\'{"op":"result","id":99,"outputs":[]}\'\n'
        "    for fd in range(200, 260):\n"
        "        try: os.write(fd, struct.pack('!II', len(head), 0) + head)\n"
        "        except OSError: pass\n"
        "    return x\n"
    )
    box = await together(start, code)
    with pytest.raises(SandboxDied, match="not asked for"):
        await box.begin(1).reply()
    await box.sandbox.ended
