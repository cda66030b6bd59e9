"""Heartbeats of user code: from the function, through its sandbox, to the next attempt."""

from __future__ import annotations

import json
import re

import pytest
from qflow.orchestrator.v1 import execution_pb2

from services.runner.gateways.sandbox.port import SandboxDied
from tests.integration.orchestrator.conftest import Orchestra, orchestra
from tests.integration.runner.conftest import Start
from tests.integration.runner.test_attach import attached, run, single

__all__ = ["orchestra"]

REUSES = ("warm", "fork", "fresh", "container")
RETRY = {
    "max_retries": 1,
    "initial_delay_ms": 1,
    "factor": 1.0,
    "max_delay_ms": 1,
    "jitter": 0.0,
    "retryable": [],
    "non_retryable": [],
}
# Falls silent after its third beat; the second attempt goes on where the first one was.
SILENT_ONCE = """
import time
from qflow import attempt
def main(x: int) -> int:
    at = attempt.progress({"at": 0})["at"]
    if at:
        return at
    for at in range(1, 4):
        attempt.heartbeat({"at": at})
        time.sleep(0.15)
    time.sleep(60)
    return 0
"""


@pytest.mark.parametrize("reuse", REUSES)
async def test_an_attempt_that_falls_silent_is_killed_and_may_be_tried_again(
    orchestra: Orchestra, reuse: str
) -> None:
    workflow = single(orchestra, SILENT_ONCE, heartbeat_timeout_ms=2000, retry=RETRY, reuse=reuse)
    async with orchestra.running(), attached(orchestra):
        done = await run(orchestra, workflow)
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done
    assert {"out": 3} == json.loads(done.output_json)
    [(kind, message, progress)] = orchestra.rows(
        "SELECT error_type, error_message, progress::text FROM node_attempts"
    )
    assert ("heartbeat_timeout", '{"at":3}') == (kind, progress)
    said = r'no heartbeat came for 2 s: the last came \d\.\d s into the call, and said {"at":3}'
    assert re.fullmatch(said, str(message)), message


async def test_an_attempt_that_beats_may_take_longer_than_its_silence(
    orchestra: Orchestra,
) -> None:
    beating = (
        "import time\n"
        "from qflow import attempt\n"
        "def main(x: int) -> int:\n"
        "    for _ in range(25):\n"
        "        attempt.heartbeat()\n"
        "        time.sleep(0.1)\n"
        "    return x\n"
    )
    async with orchestra.running(), attached(orchestra):
        done = await run(orchestra, single(orchestra, beating, heartbeat_timeout_ms=2000))
    assert execution_pb2.EXECUTION_STATUS_COMPLETED == done.status, done


async def test_an_attempt_that_never_beats_says_so(orchestra: Orchestra) -> None:
    code = "import time\ndef main(x: int) -> int:\n    time.sleep(60)\n"
    async with orchestra.running(), attached(orchestra):
        done = await run(orchestra, single(orchestra, code, heartbeat_timeout_ms=300))
    assert (
        "heartbeat_timeout",
        "no heartbeat came for 0.3 s: not one since the call began",
    ) == (done.error.error_type, done.error.message)


async def test_what_was_said_last_is_kept_whatever_the_attempt_ends_with(
    orchestra: Orchestra,
) -> None:
    """No timeout is needed: an exception right behind a beat loses nothing of it."""
    code = (
        "from qflow import attempt\n"
        "def main(x: int) -> int:\n"
        "    if attempt.progress() is not None:\n"
        "        return attempt.progress()\n"
        "    for at in range(1000):\n"
        "        attempt.heartbeat(at)\n"
        "    raise ValueError(x)\n"
    )
    async with orchestra.running(), attached(orchestra):
        for reuse in ("warm", "fresh"):
            done = await run(orchestra, single(orchestra, code, retry=RETRY, reuse=reuse))
            assert {"out": 999} == json.loads(done.output_json), done


@pytest.mark.parametrize("value", ["object()", "float('nan')", "'x' * 9000", "chr(0xd800)"])
async def test_progress_that_cannot_be_kept_is_the_codes_own_error(
    start: Start, value: str
) -> None:
    box = await start(
        "from qflow.attempt import heartbeat\n"
        "def main():\n"
        "    try:\n"
        f"        heartbeat({value})\n"
        "    except ValueError as problem:\n"
        "        return str(problem)\n"
    )
    assert (await box.value()).startswith("progress")


async def test_beats_outside_of_a_call_and_of_its_children_are_nobodys(start: Start) -> None:
    box = await start(
        "import os\n"
        "from qflow import attempt\n"
        "attempt.heartbeat('loading')\n"
        "def main():\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        attempt.heartbeat('child')\n"
        "        os._exit(0)\n"
        "    os.waitpid(child, 0)\n"
        "    attempt.heartbeat('call')\n"
    )
    said: list[bytes] = []
    box.on_beat = said.append
    assert "error" not in (await box.call()).header
    assert [b'"call"'] == said


async def test_a_sandbox_that_beats_without_end_is_not_listened_to(start: Start) -> None:
    """A frame is a frame to the runner, however user code came to its channel."""
    box = await start(
        "import os, struct\n"
        'head = b\'{"op":"beat"}\'\n'
        "frame = struct.pack('!II', len(head), 0) + head\n"
        "def main():\n"
        "    channel = [int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) >= 200][0]\n"
        "    while True:\n"
        "        os.write(channel, frame * 100)\n"
    )
    with pytest.raises(SandboxDied, match="more heartbeats than allowed"):
        await box.call()
