"""What ends is started again, also when the machine cannot start anything for a while."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from services.standalone import process
from services.standalone.home import Home
from services.standalone.supervisor import Supervisor


class OneChildOfAFullMachine(Supervisor):
    """A suite of one child, on a machine that twice has no process left for another."""

    starts = 0
    again: asyncio.Event

    async def _start(self) -> None:
        self.again = asyncio.Event()
        self.children.keep("telemetry", self._child)

    def _child(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        if self.starts in (2, 3):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        if self.starts > 3:
            self.again.set()
        forever = [sys.executable, "-c", "import time; time.sleep(600)"]
        return process.start(forever, log=None, env={"PATH": os.defpath})

    async def _ready(self) -> None:
        self.children["telemetry"].ready = True


@pytest.mark.parametrize(
    ("env", "pauses"),
    [({}, ["0", "0.25", "0.5"]), ({"QFLOW_RESTART_PAUSE_MAX_S": "0.2"}, ["0", "0.2", "0.2"])],
)
async def test_a_machine_without_a_process_to_spare_is_asked_again(
    tmp_path: Path, env: dict[str, str], pauses: list[str]
) -> None:
    said: list[str] = []
    suite = OneChildOfAFullMachine(home=Home(tmp_path), env=env, ports="auto", say=said.append)

    async def lose_the_child(_suite: Supervisor) -> int:
        first = suite.children["telemetry"].child
        assert first is not None
        first.kill()
        async with asyncio.timeout(30):
            await suite.again.wait()
        last = suite.children["telemetry"].child
        assert last is not None
        assert last.poll() is None
        return 7

    assert await suite.run(lose_the_child) == 7
    assert 2 == sum(os.strerror(errno.EAGAIN) in line for line in said)
    assert pauses == [each for line in said for each in re.findall("starts again in (.*) s$", line)]


async def test_a_longest_pause_that_is_none_stops_the_start(tmp_path: Path) -> None:
    env = {"QFLOW_RESTART_PAUSE_MAX_S": "0"}
    suite = OneChildOfAFullMachine(home=Home(tmp_path), env=env, ports="auto", say=print)
    with pytest.raises(process.StandaloneError, match="QFLOW_RESTART_PAUSE_MAX_S must be between"):
        await suite.run(lambda _: asyncio.sleep(0, 0))
