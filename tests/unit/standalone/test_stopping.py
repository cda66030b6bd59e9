"""Told to stop, the suite says so at once; told twice, it no longer waits."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.standalone import process
from services.standalone.home import Home
from services.standalone.supervisor import Supervisor

_STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


class OneStubbornRunner(Supervisor):
    """A suite of one child that does not mind SIGTERM."""

    async def _start(self) -> None:
        self.children.keep("runner", self._runner)

    def _runner(self) -> subprocess.Popen[bytes]:
        child = process.start(
            [sys.executable, "-c", _STUBBORN],
            log=None,
            env={"PATH": os.defpath},
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        with child.stdout:
            assert child.stdout.readline() == b"deaf\n"
        return child

    async def _ready(self) -> None:
        pass


async def _at_work(suite: Supervisor, up: asyncio.Event) -> int:
    up.set()
    await suite.stopped()
    return 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_ctrl_c_after_a_signal_ends_at_once_what_does_not_stop(
    tmp_path: Path, number: signal.Signals
) -> None:
    said: asyncio.Queue[str] = asyncio.Queue()
    up = asyncio.Event()
    suite = OneStubbornRunner(home=Home(tmp_path), env={}, ports="auto", say=said.put_nowait)
    running = asyncio.create_task(suite.run(lambda suite: _at_work(suite, up)))
    await up.wait()
    began = time.monotonic()
    os.kill(os.getpid(), number)
    assert "up to 20 s" in await asyncio.wait_for(said.get(), 10)
    for again in (signal.SIGHUP, signal.SIGTERM):  # who manages processes may ask twice
        os.kill(os.getpid(), again)
        await asyncio.sleep(0)
    assert not running.done()
    os.kill(os.getpid(), signal.SIGINT)
    await running
    assert time.monotonic() - began < 20
    child = suite.children["runner"].child
    assert child is not None
    assert child.returncode == -signal.SIGKILL
