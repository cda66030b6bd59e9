"""A real runner process for tests."""

from __future__ import annotations

import asyncio
import atexit
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from shutil import copytree, rmtree

from services.kit.pythons import find_pythons
from services.runner.gateways.sandbox.interpreters import prepare_interpreters

_STOP_S = 40.0


@cache
def _agents() -> Path:
    """Compile the agents once for all: half a second of a processor for each runner else."""
    folder = Path(tempfile.mkdtemp(prefix="qfa-", dir="/tmp"))
    atexit.register(rmtree, folder, ignore_errors=True)
    prepare_interpreters(find_pythons().values(), folder)
    return folder


class RunnerProcess:
    """`python -m services.runner` on a database and a home of a test."""

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        inherited = {name: v for name, v in os.environ.items() if not name.startswith("QFLOW_")}
        self._env = {**inherited, **env}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> RunnerProcess:
        copytree(_agents(), Path(self._env["QFLOW_HOME"]) / "run" / "agent", dirs_exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.runner"],
                env=self._env,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        return self

    def said(self) -> str:
        return self._log.read_text("utf-8", errors="replace") if self._log.exists() else ""

    async def until_said(self, text: str, *, times: int = 1, timeout_s: float = 60.0) -> None:
        """Wait for an event in its log."""
        try:
            async with asyncio.timeout(timeout_s):
                while self.said().count(text) < times:
                    assert self._process is not None
                    assert self._process.poll() is None, self.said()
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"never said {text!r}:\n{self.said()}") from None

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end; gives the exit code."""
        assert self._process is not None
        return await asyncio.to_thread(self._process.wait, _STOP_S)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and give its exit code; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return 0
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
        try:
            return await asyncio.to_thread(process.wait, _STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
